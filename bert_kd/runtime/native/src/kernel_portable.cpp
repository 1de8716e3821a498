// The kernel for any CPU: vectors of four floats in the compiler's own vector types, which become
// SSE2 or NEON.

#include "kernel.h"

namespace bert_kd {
namespace {

struct Portable {
  static constexpr const char* kName = "portable";
  static constexpr int kLanes = 4;

  typedef float Float __attribute__((vector_size(16)));
  typedef int32_t Int __attribute__((vector_size(16)));

  static BERT_KD_INLINE Float all(float value) { return Float{value, value, value, value}; }
  static BERT_KD_INLINE Float load(const float* at) {
    Float value;
    __builtin_memcpy(&value, at, sizeof value);
    return value;
  }
  static BERT_KD_INLINE void store(float* at, Float value) {
    __builtin_memcpy(at, &value, sizeof value);
  }
  static BERT_KD_INLINE Float load_fp16(const uint16_t* at) {
    // Exponent and mantissa in fp32's place, the exponent's bias made good by a product, which is
    // right for subnormals too. Tables hold no infinities.
    const Int bits = {at[0], at[1], at[2], at[3]};
    const Float magnitude = reinterpret_cast<Float>((bits & 0x7fff) << 13) * 0x1p112f;
    return reinterpret_cast<Float>(reinterpret_cast<Int>(magnitude) | ((bits & 0x8000) << 16));
  }
  static BERT_KD_INLINE Float load_int8(const int8_t* at) {
    return Float{float(at[0]), float(at[1]), float(at[2]), float(at[3])};
  }

  static BERT_KD_INLINE Float add(Float a, Float b) { return a + b; }
  static BERT_KD_INLINE Float multiply(Float a, Float b) { return a * b; }
  static BERT_KD_INLINE Float fma(Float a, Float b, Float c) { return a * b + c; }
  static BERT_KD_INLINE Float max(Float a, Float b) { return a > b ? a : b; }
  static BERT_KD_INLINE Float divide(Float a, Float b) { return a / b; }

  // For 2^t: t within the exponents of normal numbers, its fraction, and value · 2^floor(t).
  static BERT_KD_INLINE Float bound(Float t) {
    const Float lowest = all(-126.0f), highest = all(126.0f);
    t = t < lowest ? lowest : t;
    return t > highest ? highest : t;
  }
  static BERT_KD_INLINE Int floor(Float t) {
    // Shifted to positive numbers, where cutting off is rounding down. What is no number becomes
    // zero first: its conversion is undefined.
    const Float shifted = t == t ? t + 128.0f : all(0.0f);
    const Int cut = {int32_t(shifted[0]), int32_t(shifted[1]), int32_t(shifted[2]),
                     int32_t(shifted[3])};
    return cut - 128;
  }
  static BERT_KD_INLINE Float to_float(Int value) {
    return Float{float(value[0]), float(value[1]), float(value[2]), float(value[3])};
  }
  static BERT_KD_INLINE Float fraction(Float t) { return t - to_float(floor(t)); }
  static BERT_KD_INLINE Float scale(Float value, Float t) {
    return value * reinterpret_cast<Float>((floor(t) + 127) << 23);
  }

  struct Fp32 {
    static constexpr Precision kPrecision = Precision::kFp32;
    using Gates = PowerGates<Portable>;
    static constexpr int kRows = 2;
    static constexpr int kStateBytes = 4;
    static constexpr unsigned char kZero = 0;
    using Sum = Float;
    using Input = Float;
    using Weights = Float;

    static BERT_KD_INLINE Sum zero() { return all(0.0f); }
    static BERT_KD_INLINE Sum start(const int32_t*) { return zero(); }
    static BERT_KD_INLINE Sum add(Sum a, Sum b) { return a + b; }
    static BERT_KD_INLINE Float to_float(Sum sum) { return sum; }
    static BERT_KD_INLINE Input broadcast(const char* at) {
      float value;
      __builtin_memcpy(&value, at, sizeof value);
      return all(value);
    }
    static BERT_KD_INLINE Weights load_weights(const char* at) {
      return load(reinterpret_cast<const float*>(at));
    }
    static BERT_KD_INLINE void multiply_add(Sum& sum, Input input, Weights weights) {
      sum += input * weights;
    }
    static BERT_KD_INLINE void store_state(char* at, Float state) {
      __builtin_memcpy(at, &state, sizeof state);
    }
  };

  struct Int8 {
    static constexpr Precision kPrecision = Precision::kInt8;
    using Gates = PowerGates<Portable>;
    static constexpr int kRows = 2;
    static constexpr int kStateBytes = 1;
    static constexpr unsigned char kZero = 0;
    typedef int8_t Bytes __attribute__((vector_size(16)));
    using Sum = Int;
    struct Input {
      int32_t values[4];
    };
    using Weights = Bytes;

    static BERT_KD_INLINE Sum zero() { return Int{0, 0, 0, 0}; }
    static BERT_KD_INLINE Sum start(const int32_t*) { return zero(); }
    static BERT_KD_INLINE Sum add(Sum a, Sum b) { return a + b; }
    static BERT_KD_INLINE Float to_float(Sum sum) { return Portable::to_float(sum); }
    static BERT_KD_INLINE Input broadcast(const char* at) {
      int8_t values[4];
      __builtin_memcpy(values, at, sizeof values);
      return Input{{values[0], values[1], values[2], values[3]}};
    }
    static BERT_KD_INLINE Weights load_weights(const char* at) {
      Weights weights;
      __builtin_memcpy(&weights, at, sizeof weights);
      return weights;
    }
    static BERT_KD_INLINE void multiply_add(Sum& sum, const Input& input, Weights weights) {
      // Each 32-bit lane holds four weights; shifts bring each to the top and down with its sign.
      const Int lanes = reinterpret_cast<Int>(weights);
      sum += input.values[0] * ((lanes << 24) >> 24) + input.values[1] * ((lanes << 16) >> 24) +
             input.values[2] * ((lanes << 8) >> 24) + input.values[3] * (lanes >> 24);
    }
    static BERT_KD_INLINE void store_state(char* at, Float state) {
      int8_t values[kLanes];
      for (int lane = 0; lane < kLanes; ++lane) {
        const float value = state[lane] == state[lane] ? state[lane] : 0.0f;
        values[lane] = static_cast<int8_t>(__builtin_lrintf(value * kStateScale));
      }
      __builtin_memcpy(at, values, sizeof values);
    }
  };
};

}  // namespace

extern const Kernel kPortableFp32 = make_kernel<Portable, Portable::Fp32>();
extern const Kernel kPortableInt8 = make_kernel<Portable, Portable::Int8>();

}  // namespace bert_kd
