// The kernel for AVX-512: VNNI for int8, AVX512_BF16 for bf16.

#if defined(__x86_64__)

// GCC 12 takes the intrinsics' undefined registers for forgotten ones.
#pragma GCC diagnostic push
#if !defined(__clang__)
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#endif
#pragma GCC diagnostic ignored "-Wuninitialized"
#include <immintrin.h>
#pragma GCC diagnostic pop

#include "kernel.h"

namespace bert_kd {
namespace {

// tanh(x) ≈ (square · x + linear) · x + constant for x around k / 4, with the least error (1.25e-4)
// on each of the 32 pieces; the first one goes through zero.
struct Pieces {
  float square[32];
  float linear[32];
  float constant[32];
};

alignas(64) constexpr Pieces kTanh = {
    {-5.7557244e-02f, -2.2752305e-01f, -3.6023666e-01f, -3.7698585e-01f, -3.1930314e-01f,
     -2.3811227e-01f, -1.6405155e-01f, -1.0759864e-01f, -6.8458840e-02f, -4.2750746e-02f,
     -2.6393697e-02f, -1.6182092e-02f, -9.8793957e-03f, -6.0160126e-03f, -3.6577043e-03f,
     -2.2217573e-03f, -1.3487602e-03f, -8.1850487e-04f, -4.9661041e-04f, -3.0126909e-04f,
     -1.8275089e-04f, -1.1085210e-04f, -6.7238166e-05f, -4.0783102e-05f, -2.4736604e-05f,
     -1.5003657e-05f, -9.1002322e-06f, -5.5195898e-06f, -3.3478079e-06f, -2.0305508e-06f,
     -1.2315923e-06f, -7.4699885e-07f},
    {1.0022158e+00f, 1.0507785e+00f, 1.1455802e+00f, 1.1625402e+00f, 1.0597869e+00f, 8.7696154e-01f,
     6.7388984e-01f, 4.9114518e-01f, 3.4498034e-01f, 2.3616129e-01f, 1.5876060e-01f, 1.0533967e-01f,
     6.9218530e-02f, 4.5146331e-02f, 2.9273174e-02f, 1.8890323e-02f, 1.2141514e-02f, 7.7771979e-03f,
     4.9668736e-03f, 3.1637625e-03f, 2.0105140e-03f, 1.2749492e-03f, 8.0694758e-04f, 5.0984257e-04f,
     3.2160828e-04f, 2.0256896e-04f, 1.2741511e-04f, 8.0041235e-05f, 5.0221470e-05f, 3.1476176e-05f,
     1.9707077e-05f, 1.2326451e-05f},
    {0.0000000e+00f, -3.5641776e-03f, -2.0623693e-02f, -2.4707549e-02f, 2.1108735e-02f,
     1.2413288e-01f, 2.6343101e-01f,  4.1139374e-01f,  5.4790336e-01f,  6.6308962e-01f,
     7.5467390e-01f, 8.2455302e-01f,  8.7631392e-01f,  9.1381631e-01f,  9.4052874e-01f,
     9.5929924e-01f, 9.7234344e-01f,  9.8132432e-01f,  9.8745865e-01f,  9.9161983e-01f,
     9.9442541e-01f, 9.9630681e-01f,  9.9756234e-01f,  9.9839654e-01f,  9.9894858e-01f,
     9.9931257e-01f, 9.9955177e-01f,  9.9970847e-01f,  9.9981083e-01f,  9.9987752e-01f,
     9.9992086e-01f, 9.9994897e-01f}};

// tanh(x / 2) / 2 = sigmoid(x) − 1/2, from the same pieces.
constexpr Pieces halve(const Pieces& whole) {
  Pieces half{};
  for (int piece = 0; piece < 32; ++piece) {
    half.square[piece] = whole.square[piece] / 8;
    half.linear[piece] = whole.linear[piece] / 4;
    half.constant[piece] = whole.constant[piece] / 2;
  }
  return half;
}

alignas(64) constexpr Pieces kHalfTanh = halve(kTanh);

struct Avx512 {
  static constexpr const char* kName = "avx512";
  static constexpr int kLanes = 16;
  // 24 sums, 6 texts × 4 vectors, of 32 registers: 4 hold the weights and 1 an input.
  static constexpr int kTileRows = 6;

  using Float = __m512;

  static BERT_KD_INLINE Float all(float value) { return _mm512_set1_ps(value); }
  static BERT_KD_INLINE Float load(const float* at) { return _mm512_loadu_ps(at); }
  static BERT_KD_INLINE void store(float* at, Float value) { _mm512_storeu_ps(at, value); }
  static BERT_KD_INLINE Float load_fp16(const uint16_t* at) {
    return _mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(at)));
  }
  static BERT_KD_INLINE Float load_int8(const int8_t* at) {
    return _mm512_cvtepi32_ps(
        _mm512_cvtepi8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(at))));
  }

  static BERT_KD_INLINE Float add(Float a, Float b) { return _mm512_add_ps(a, b); }
  static BERT_KD_INLINE Float multiply(Float a, Float b) { return _mm512_mul_ps(a, b); }
  static BERT_KD_INLINE Float fma(Float a, Float b, Float c) { return _mm512_fmadd_ps(a, b, c); }
  static BERT_KD_INLINE Float max(Float a, Float b) { return _mm512_max_ps(a, b); }
  static BERT_KD_INLINE Float divide(Float a, Float b) { return _mm512_div_ps(a, b); }

  // For 2^t: the instructions bound t themselves; the fraction above floor(t), value · 2^floor(t).
  static BERT_KD_INLINE Float bound(Float t) { return t; }
  static BERT_KD_INLINE Float fraction(Float t) {
    return _mm512_reduce_ps(t, _MM_FROUND_TO_NEG_INF | _MM_FROUND_NO_EXC);
  }
  static BERT_KD_INLINE Float scale(Float value, Float t) { return _mm512_scalef_ps(value, t); }

  // Gates from tables, in half the time of a power of two and a division. Errors shrink with the
  // distance of a gate from open or shut, so that long memories stay long.
  struct TableGates {
    template <int kCount>
    static BERT_KD_INLINE void sigmoid(Float (&values)[kCount]) {
      look_up(kHalfTanh, 0.5f, values);
#pragma GCC unroll 8
      for (Float& value : values) value = _mm512_add_ps(value, all(0.5f));
    }

    template <int kCount>
    static BERT_KD_INLINE void tanh(Float (&values)[kCount]) {
      look_up(kTanh, 0.25f, values);
    }

   private:
    // The odd function of `pieces`, each of which is `width` wide.
    template <int kCount>
    static BERT_KD_INLINE void look_up(const Pieces& pieces, float width, Float (&values)[kCount]) {
      Float bounded[kCount];
      __m512i piece[kCount];
      constexpr int kLeastMagnitude = 2 | 2 << 2;  // min(|a|, |b|), without a sign
#pragma GCC unroll 8
      for (int at = 0; at < kCount; ++at) {
        bounded[at] = _mm512_range_ps(values[at], all(31.4375f * width), kLeastMagnitude);
      }
      // A float so large that its last bit is worth a piece: adding it rounds to the number of the
      // piece, and leaves this number in the last bits.
#pragma GCC unroll 8
      for (int at = 0; at < kCount; ++at) {
        piece[at] = _mm512_castps_si512(_mm512_add_ps(bounded[at], all(width * (3 << 22))));
      }
      Float results[kCount];
#pragma GCC unroll 8
      for (int at = 0; at < kCount; ++at) results[at] = choose(pieces.square, piece[at]);
#pragma GCC unroll 8
      for (int at = 0; at < kCount; ++at) {
        results[at] = _mm512_fmadd_ps(results[at], bounded[at], choose(pieces.linear, piece[at]));
      }
#pragma GCC unroll 8
      for (int at = 0; at < kCount; ++at) {
        results[at] = _mm512_fmadd_ps(results[at], bounded[at], choose(pieces.constant, piece[at]));
      }
      constexpr int kFirstOrSecondAndThird = 0xf8;
#pragma GCC unroll 8
      for (int at = 0; at < kCount; ++at) {
        values[at] = _mm512_castsi512_ps(_mm512_ternarylogic_epi32(
            _mm512_castps_si512(results[at]), _mm512_castps_si512(values[at]),
            _mm512_set1_epi32(INT32_MIN), kFirstOrSecondAndThird));
      }
    }

    static BERT_KD_INLINE Float choose(const float* table, __m512i piece) {
      return _mm512_permutex2var_ps(_mm512_load_ps(table), piece, _mm512_load_ps(table + 16));
    }
  };

  // The multiply-adds are written as assembly: given intrinsics, GCC 12 moves the sums between
  // registers and memory inside the loop.
  struct Fp32 {
    static constexpr Precision kPrecision = Precision::kFp32;
    using Gates = PowerGates<Avx512>;
    static constexpr int kRows = kTileRows;
    static constexpr int kStateBytes = 4;
    static constexpr unsigned char kZero = 0;
    using Sum = __m512;
    using Input = __m512;
    using Weights = __m512;

    static BERT_KD_INLINE Sum zero() { return _mm512_setzero_ps(); }
    static BERT_KD_INLINE Sum start(const int32_t*) { return zero(); }
    static BERT_KD_INLINE Sum add(Sum a, Sum b) { return _mm512_add_ps(a, b); }
    static BERT_KD_INLINE Float to_float(Sum sum) { return sum; }
    static BERT_KD_INLINE Input broadcast(const char* at) {
      return _mm512_set1_ps(*reinterpret_cast<const float*>(at));
    }
    static BERT_KD_INLINE Weights load_weights(const char* at) { return _mm512_loadu_ps(at); }
    static BERT_KD_INLINE void multiply_add(Sum& sum, Input input, Weights weights) {
      asm("vfmadd231ps %2, %1, %0" : "+v"(sum) : "v"(input), "v"(weights));
    }
    static BERT_KD_INLINE void store_state(char* at, Float state) { _mm512_storeu_ps(at, state); }
  };

  struct Bf16 {
    static constexpr Precision kPrecision = Precision::kBf16;
    using Gates = TableGates;
    static constexpr int kRows = kTileRows;
    static constexpr int kStateBytes = 2;
    static constexpr unsigned char kZero = 0;
    using Sum = __m512;
    using Input = __m512i;
    using Weights = __m512i;

    static BERT_KD_INLINE Sum zero() { return _mm512_setzero_ps(); }
    static BERT_KD_INLINE Sum start(const int32_t*) { return zero(); }
    static BERT_KD_INLINE Sum add(Sum a, Sum b) { return _mm512_add_ps(a, b); }
    static BERT_KD_INLINE Float to_float(Sum sum) { return sum; }
    static BERT_KD_INLINE Input broadcast(const char* at) {
      int32_t pair;
      __builtin_memcpy(&pair, at, sizeof pair);
      return _mm512_set1_epi32(pair);
    }
    static BERT_KD_INLINE Weights load_weights(const char* at) { return _mm512_loadu_si512(at); }
    static BERT_KD_INLINE void multiply_add(Sum& sum, Input input, Weights weights) {
      asm("vdpbf16ps %2, %1, %0" : "+v"(sum) : "v"(input), "v"(weights));
    }
    static BERT_KD_INLINE void store_state(char* at, Float state) {
      const __m256bh rounded = _mm512_cvtneps_pbh(state);
      __builtin_memcpy(at, &rounded, sizeof rounded);
    }
  };

  // The instruction multiplies unsigned by signed numbers: states carry an offset of 128, which
  // `start` takes out again.
  struct Int8 {
    static constexpr Precision kPrecision = Precision::kInt8;
    using Gates = TableGates;
    static constexpr int kRows = kTileRows;
    static constexpr int kStateBytes = 1;
    static constexpr unsigned char kZero = 128;
    using Sum = __m512i;
    using Input = __m512i;
    using Weights = __m512i;

    static BERT_KD_INLINE Sum zero() { return _mm512_setzero_si512(); }
    static BERT_KD_INLINE Sum start(const int32_t* at) { return _mm512_loadu_si512(at); }
    static BERT_KD_INLINE Sum add(Sum a, Sum b) { return _mm512_add_epi32(a, b); }
    static BERT_KD_INLINE Float to_float(Sum sum) { return _mm512_cvtepi32_ps(sum); }
    static BERT_KD_INLINE Input broadcast(const char* at) {
      int32_t group;
      __builtin_memcpy(&group, at, sizeof group);
      return _mm512_set1_epi32(group);
    }
    static BERT_KD_INLINE Weights load_weights(const char* at) { return _mm512_loadu_si512(at); }
    static BERT_KD_INLINE void multiply_add(Sum& sum, Input input, Weights weights) {
      asm("vpdpbusd %2, %1, %0" : "+v"(sum) : "v"(input), "v"(weights));
    }
    static BERT_KD_INLINE void store_state(char* at, Float state) {
      const __m512i rounded = _mm512_cvtps_epi32(
          _mm512_fmadd_ps(state, _mm512_set1_ps(kStateScale), _mm512_set1_ps(float{kZero})));
      _mm_storeu_si128(reinterpret_cast<__m128i*>(at), _mm512_cvtusepi32_epi8(rounded));
    }
  };
};

}  // namespace

extern const Kernel kAvx512Fp32 = make_kernel<Avx512, Avx512::Fp32>();
extern const Kernel kAvx512Bf16 = make_kernel<Avx512, Avx512::Bf16>();
extern const Kernel kAvx512Int8 = make_kernel<Avx512, Avx512::Int8>();

}  // namespace bert_kd

#endif
