#include "dispatch.h"

#include <cstring>

#if defined(__x86_64__)
#include <cpuid.h>
#endif

namespace bert_kd {

extern const Kernel kPortableFp32, kPortableInt8;

#if defined(__x86_64__)

extern const Kernel kAvx2Fp32, kAvx2Int8, kAvx512Fp32, kAvx512Bf16, kAvx512Int8;

namespace {

bool has_avx2() {
  // Not every compiler's __builtin_cpu_supports knows F16C.
  unsigned eax, ebx, ecx = 0, edx;
  const bool fp16 = __get_cpuid(1, &eax, &ebx, &ecx, &edx) && (ecx & bit_F16C);
  return fp16 && __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
}

bool has_avx512() {
  return has_avx2() && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
         __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl") &&
         __builtin_cpu_supports("avx512vnni");
}

bool has_bf16() { return __builtin_cpu_supports("avx512bf16"); }

}  // namespace

#endif

const char* const* instruction_sets() {
  static const char* const every[] = {"avx512", "avx2", "portable", nullptr};
#if defined(__x86_64__)
  static const int first = has_avx512() ? 0 : has_avx2() ? 1 : 2;
#else
  static const int first = 2;
#endif
  return every + first;
}

const Kernel* find_kernel(const char* instruction_set, Precision precision) {
  const char* const* known = instruction_sets();
  const char* name = *known;
  if (instruction_set) {
    while (*known && std::strcmp(*known, instruction_set) != 0) ++known;
    name = *known;
  }
  if (!name) return nullptr;
  const bool int8 = precision == Precision::kInt8;
#if defined(__x86_64__)
  if (!std::strcmp(name, "avx512")) {
    if (precision == Precision::kBf16 && has_bf16()) return &kAvx512Bf16;
    return int8 ? &kAvx512Int8 : &kAvx512Fp32;
  }
  if (!std::strcmp(name, "avx2")) return int8 ? &kAvx2Int8 : &kAvx2Fp32;
#endif
  return int8 ? &kPortableInt8 : &kPortableFp32;
}

}  // namespace bert_kd
