// Vectors of the widest registers, or with MAST_NARROW of half their width, in the compilers' own notation.
//
// They always hold float32. Tensors hold a `Value`: float32 or, with MAST_BF16, bfloat16, rounded to nearest even.

#pragma once

#include <cstdint>
#include <cstring>
#include <utility>

#ifdef __AVX512BF16__
#include <immintrin.h>
#endif

#if defined(__AVX512F__) && !defined(MAST_NARROW)
constexpr int kLanes = 16;
#elif defined(__AVX512F__) || (defined(__AVX__) && !defined(MAST_NARROW))
constexpr int kLanes = 8;
#else
constexpr int kLanes = 4;
#endif

typedef float Floats __attribute__((vector_size(4 * kLanes)));
typedef int32_t Ints __attribute__((vector_size(4 * kLanes)));
typedef uint32_t Words __attribute__((vector_size(4 * kLanes)));
typedef uint16_t Halves __attribute__((vector_size(2 * kLanes)));

struct Bfloat16 {
    uint16_t bits;
};

#ifdef MAST_BF16
typedef Bfloat16 Value;
#else
typedef float Value;
#endif

inline Floats load(const float* from) {
    Floats x;
    std::memcpy(&x, from, sizeof x);
    return x;
}

inline Floats load(const Bfloat16* from) {
    Halves x;
    std::memcpy(&x, from, sizeof x);
    return (Floats)(__builtin_convertvector(x, Words) << 16);
}

inline void store(float* to, Floats x) { std::memcpy(to, &x, sizeof x); }

inline void store(Bfloat16* to, Floats x) {
#if defined(__AVX512BF16__) && !defined(MAST_NARROW)
    const auto halves = _mm512_cvtneps_pbh((__m512)x);
#elif defined(__AVX512BF16__) && defined(__AVX512VL__)
    const auto halves = _mm256_cvtneps_pbh((__m256)x);
#else
    const Words bits = (Words)x, rounded = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
    const Words number = (Words)(x == x);  // all ones, or zeros for NaN, which rounding could turn into a number
    const Halves halves = __builtin_convertvector((rounded & number) | (0x7fc0 & ~number), Halves);
#endif
    std::memcpy(to, &halves, sizeof halves);
}

inline float number(float x) { return x; }

inline float number(Bfloat16 x) {
    const uint32_t bits = (uint32_t)x.bits << 16;
    float value;
    std::memcpy(&value, &bits, sizeof value);
    return value;
}

#ifdef MAST_BF16
inline Value rounded(float x) {
    uint32_t bits;
    std::memcpy(&bits, &x, sizeof bits);
    const uint32_t up = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
    return {(uint16_t)(x == x ? up : 0x7fc0)};
}
#else
inline Value rounded(float x) { return x; }
#endif

// Stores the first `size` lanes.
template <typename T>
void store_some(T* to, Floats x, int64_t size) {
    T all[kLanes];
    store(all, x);
    std::memcpy(to, all, size * sizeof(T));
}

// The lanes of a and b that the indices name; b's are kLanes and up.
template <int... index>
Floats pick(Floats a, Floats b) {
#ifdef __clang__
    return __builtin_shufflevector(a, b, index...);
#else
    return __builtin_shuffle(a, b, Ints{index...});
#endif
}

// Every lane gets the sum of itself and the lane `distance` away, counted in the bits of its index.
template <int distance, int... i>
Floats fold(Floats x, std::integer_sequence<int, i...>) {
    return x + pick<(i ^ distance)...>(x, x);
}

inline float total(Floats x) {
    constexpr auto lanes = std::make_integer_sequence<int, kLanes>();
    if constexpr (kLanes > 8) x = fold<8>(x, lanes);
    if constexpr (kLanes > 4) x = fold<4>(x, lanes);
    return fold<1>(fold<2>(x, lanes), lanes)[0];
}
