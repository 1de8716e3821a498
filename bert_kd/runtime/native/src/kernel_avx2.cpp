// The kernel for AVX2 with FMA and F16C.

#if defined(__x86_64__)

#include <immintrin.h>

#include "kernel.h"

namespace bert_kd {
namespace {

// Tiles are of two rows: eight sums, of 16 registers.
struct Avx2 {
  static constexpr const char* kName = "avx2";
  static constexpr int kLanes = 8;

  using Float = __m256;

  static BERT_KD_INLINE Float all(float value) { return _mm256_set1_ps(value); }
  static BERT_KD_INLINE Float load(const float* at) { return _mm256_loadu_ps(at); }
  static BERT_KD_INLINE void store(float* at, Float value) { _mm256_storeu_ps(at, value); }
  static BERT_KD_INLINE Float load_fp16(const uint16_t* at) {
    return _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(at)));
  }
  static BERT_KD_INLINE Float load_int8(const int8_t* at) {
    return _mm256_cvtepi32_ps(
        _mm256_cvtepi8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(at))));
  }

  static BERT_KD_INLINE Float add(Float a, Float b) { return _mm256_add_ps(a, b); }
  static BERT_KD_INLINE Float multiply(Float a, Float b) { return _mm256_mul_ps(a, b); }
  static BERT_KD_INLINE Float fma(Float a, Float b, Float c) { return _mm256_fmadd_ps(a, b, c); }
  static BERT_KD_INLINE Float max(Float a, Float b) { return _mm256_max_ps(a, b); }
  static BERT_KD_INLINE Float divide(Float a, Float b) { return _mm256_div_ps(a, b); }

  // For 2^t: t within the exponents of normal numbers, its fraction, and value · 2^floor(t). The
  // order of operands lets what is no number through.
  static BERT_KD_INLINE Float bound(Float t) {
    return _mm256_max_ps(all(-126.0f), _mm256_min_ps(all(126.0f), t));
  }
  static BERT_KD_INLINE Float fraction(Float t) { return _mm256_sub_ps(t, _mm256_floor_ps(t)); }
  static BERT_KD_INLINE Float scale(Float value, Float t) {
    const __m256i exponent = _mm256_slli_epi32(_mm256_cvtps_epi32(_mm256_floor_ps(t)), 23);
    return _mm256_castsi256_ps(_mm256_add_epi32(_mm256_castps_si256(value), exponent));
  }

  struct Fp32 {
    static constexpr Precision kPrecision = Precision::kFp32;
    using Gates = PowerGates<Avx2>;
    static constexpr int kRows = 2;
    static constexpr int kStateBytes = 4;
    static constexpr unsigned char kZero = 0;
    using Sum = __m256;
    using Input = __m256;
    using Weights = __m256;

    static BERT_KD_INLINE Sum zero() { return _mm256_setzero_ps(); }
    static BERT_KD_INLINE Sum start(const int32_t*) { return zero(); }
    static BERT_KD_INLINE Sum add(Sum a, Sum b) { return _mm256_add_ps(a, b); }
    static BERT_KD_INLINE Float to_float(Sum sum) { return sum; }
    static BERT_KD_INLINE Input broadcast(const char* at) {
      return _mm256_broadcast_ss(reinterpret_cast<const float*>(at));
    }
    static BERT_KD_INLINE Weights load_weights(const char* at) {
      return _mm256_loadu_ps(reinterpret_cast<const float*>(at));
    }
    static BERT_KD_INLINE void multiply_add(Sum& sum, Input input, Weights weights) {
      sum = _mm256_fmadd_ps(input, weights, sum);
    }
    static BERT_KD_INLINE void store_state(char* at, Float state) {
      _mm256_storeu_ps(reinterpret_cast<float*>(at), state);
    }
  };

  // The only byte product adds neighbours in 16 bits. |h| ≤ 127 against weights of the same bound
  // with h's sign cannot overflow them.
  struct Int8 {
    static constexpr Precision kPrecision = Precision::kInt8;
    using Gates = PowerGates<Avx2>;
    static constexpr int kRows = 2;
    static constexpr int kStateBytes = 1;
    static constexpr unsigned char kZero = 0;
    using Sum = __m256i;
    struct Input {
      __m256i values;
      __m256i magnitudes;
    };
    using Weights = __m256i;

    static BERT_KD_INLINE Sum zero() { return _mm256_setzero_si256(); }
    static BERT_KD_INLINE Sum start(const int32_t*) { return zero(); }
    static BERT_KD_INLINE Sum add(Sum a, Sum b) { return _mm256_add_epi32(a, b); }
    static BERT_KD_INLINE Float to_float(Sum sum) { return _mm256_cvtepi32_ps(sum); }
    static BERT_KD_INLINE Input broadcast(const char* at) {
      int32_t group;
      __builtin_memcpy(&group, at, sizeof group);
      const __m256i values = _mm256_set1_epi32(group);
      return {values, _mm256_abs_epi8(values)};
    }
    static BERT_KD_INLINE Weights load_weights(const char* at) {
      return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(at));
    }
    static BERT_KD_INLINE void multiply_add(Sum& sum, const Input& input, Weights weights) {
      const __m256i signs = _mm256_sign_epi8(weights, input.values);
      const __m256i pairs = _mm256_maddubs_epi16(input.magnitudes, signs);
      sum = _mm256_add_epi32(sum, _mm256_madd_epi16(pairs, _mm256_set1_epi16(1)));
    }
    static BERT_KD_INLINE void store_state(char* at, Float state) {
      const __m256i rounded = _mm256_cvtps_epi32(_mm256_mul_ps(state, all(kStateScale)));
      const __m128i halves =
          _mm_packs_epi32(_mm256_castsi256_si128(rounded), _mm256_extracti128_si256(rounded, 1));
      _mm_storel_epi64(reinterpret_cast<__m128i*>(at), _mm_packs_epi16(halves, halves));
    }
  };
};

}  // namespace

extern const Kernel kAvx2Fp32 = make_kernel<Avx2, Avx2::Fp32>();
extern const Kernel kAvx2Int8 = make_kernel<Avx2, Avx2::Int8>();

}  // namespace bert_kd

#endif
