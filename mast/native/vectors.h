// Vectors of the widest registers, or with MAST_NARROW of half their width, in the compilers' own notation.

#pragma once

#include <cstdint>
#include <cstring>
#include <utility>

#if defined(__AVX512F__) && !defined(MAST_NARROW)
constexpr int kLanes = 16;
#elif defined(__AVX512F__) || (defined(__AVX__) && !defined(MAST_NARROW))
constexpr int kLanes = 8;
#else
constexpr int kLanes = 4;
#endif

typedef float Floats __attribute__((vector_size(4 * kLanes)));
typedef int32_t Ints __attribute__((vector_size(4 * kLanes)));

inline Floats load(const float* from) {
    Floats x;
    std::memcpy(&x, from, sizeof x);
    return x;
}

inline void store(float* to, Floats x) { std::memcpy(to, &x, sizeof x); }

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
