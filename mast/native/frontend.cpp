// Both sides of the log-mel frontend's transform, each in one pass over memory.
//
// Frames are counted through the batch: frame n is frame n % per_clip of clip n / per_clip. Sizes and strides are in
// floats.

#include <cfloat>
#include <cstdint>
#include <cstring>
#include <utility>

#ifdef _OPENMP
#include <omp.h>
#endif

namespace {

#if defined(__AVX512F__)
constexpr int kLanes = 16;
#elif defined(__AVX__)
constexpr int kLanes = 8;
#else
constexpr int kLanes = 4;
#endif

typedef float Floats __attribute__((vector_size(4 * kLanes)));
typedef int32_t Ints __attribute__((vector_size(4 * kLanes)));

Floats load(const float* from) {
    Floats x;
    std::memcpy(&x, from, sizeof x);
    return x;
}

void store(float* to, Floats x) { std::memcpy(to, &x, sizeof x); }

// The lanes of a and b that the indices name; b's are kLanes and up.
template <int... index>
Floats pick(Floats a, Floats b) {
#ifdef __clang__
    return __builtin_shufflevector(a, b, index...);
#else
    return __builtin_shuffle(a, b, Ints{index...});
#endif
}

template <int... i>
Floats even(Floats a, Floats b, std::integer_sequence<int, i...>) {
    return pick<2 * i...>(a, b);
}

template <int... i>
Floats odd(Floats a, Floats b, std::integer_sequence<int, i...>) {
    return pick<2 * i + 1 ...>(a, b);
}

// a0 b0 a1 b1 ..., from lane `from` of both.
template <int from, int... i>
Floats interleave(Floats a, Floats b, std::integer_sequence<int, i...>) {
    return pick<from + i / 2 + (i % 2) * kLanes...>(a, b);
}

// Each lane's neighbour on the left: the last of a, then b without its last.
template <int... i>
Floats before(Floats a, Floats b, std::integer_sequence<int, i...>) {
    return pick<i + kLanes - 1 ...>(a, b);
}

constexpr auto kAll = std::make_integer_sequence<int, kLanes>();

// Interleaving row i with row i + kLanes / 2 rotates the bits of (row, column) by one: log2(kLanes) times transposes.
void transpose(Floats (&rows)[kLanes]) {
    for (int done = 1; done < kLanes; done *= 2) {
        Floats next[kLanes];
        for (int i = 0; i < kLanes / 2; ++i) {
            next[2 * i] = interleave<0>(rows[i], rows[i + kLanes / 2], kAll);
            next[2 * i + 1] = interleave<kLanes / 2>(rows[i], rows[i + kLanes / 2], kAll);
        }
        std::memcpy(rows, next, sizeof next);
    }
}

// Natural logarithm of normal positive numbers, within 2 units in the last place (Cephes' logf); infinity and NaN as
// they are.
Floats log(Floats x) {
    const Ints bits = (Ints)x;
    const Ints exponent = (bits - 0x3f3504f3) >> 23;  // so that the mantissa lies in [sqrt(1/2), sqrt(2))
    const Floats m = (Floats)(bits - (exponent << 23)) - 1.0f;
    const Floats e = __builtin_convertvector(exponent, Floats);
    Floats p = 7.0376836292e-2f * m - 1.1514610310e-1f;
    p = p * m + 1.1676998740e-1f;
    p = p * m - 1.2420140846e-1f;
    p = p * m + 1.4249322787e-1f;
    p = p * m - 1.6668057665e-1f;
    p = p * m + 2.0000714765e-1f;
    p = p * m - 2.4999993993e-1f;
    p = p * m + 3.3333331174e-1f;
    const Floats square = m * m;
    // ln 2 in two parts, the first of which gives exact products.
    const Floats low = (p * m * square - 2.12194440e-4f * e) - 0.5f * square;
    const Floats result = (m + low) + 0.693359375f * e;
    return x <= FLT_MAX ? result : x;
}

// Squared magnitudes of kLanes frames, a frame a lane: power[bin][lane].
void powers(const float* const (&frames)[kLanes], int64_t bins, float* power) {
    for (int64_t bin = 0; bin < bins; bin += kLanes) {
        Floats rows[kLanes];
        for (int lane = 0; lane < kLanes; ++lane) {
            const Floats a = load(frames[lane] + 2 * bin), b = load(frames[lane] + 2 * bin + kLanes);
            const Floats real = even(a, b, kAll), imaginary = odd(a, b, kAll);
            rows[lane] = real * real + imaginary * imaginary;
        }
        transpose(rows);
        std::memcpy(power + bin * kLanes, rows, sizeof rows);
    }
}

// Frames that are worked on together: their results are neighbours in a row of the output, so that whole cache lines
// are written at once. Rows are often 4 KiB apart, where many half-written lines would evict each other.
constexpr int kGroup = 64;

struct Filters {
    int64_t count;
    const int32_t *starts, *quads;
    const float* weights;
};

// energies[mel][lane] of kLanes frames; rows are kGroup apart.
void apply(const Filters& filters, const float* power, float* energies) {
    const float* weight = filters.weights;
    for (int64_t mel = 0; mel < filters.count; ++mel) {
        const float* bin = power + filters.starts[mel] * int64_t{kLanes};
        Floats energy = {};
        for (int32_t quad = 0; quad < filters.quads[mel]; ++quad, bin += 4 * kLanes, weight += 4)
            energy += (weight[0] * load(bin) + weight[1] * load(bin + kLanes)) +
                      (weight[2] * load(bin + 2 * kLanes) + weight[3] * load(bin + 3 * kLanes));
        store(energies + mel * kGroup, energy);
    }
}

// y[j] = (c[j] - preemphasis * c[j - 1]) * taper[j] with c = x - mean; c[-1] is 0. The order of rounding is Kaldi's.
void windowed_frame(const float* x, float mean, float preemphasis, const float* taper, int64_t window, float* y) {
    Floats last = {};
    for (int64_t j = 0; j < window; j += kLanes) {
        const int64_t left = window - j;
        Floats samples = {};
        if (left >= kLanes)
            samples = load(x + j);
        else
            std::memcpy(&samples, x + j, left * sizeof(float));
        const Floats centred = samples - mean;
        const Floats value = (centred - preemphasis * before(last, centred, kAll)) * load(taper + j);
        last = centred;
        if (left >= kLanes)
            store(y + j, value);
        else
            std::memcpy(y + j, &value, left * sizeof(float));
    }
}

}  // namespace

extern "C" {

// out[i][j], j < window: frame first + i less its mean, pre-emphasised, times the taper, which begins with a zero and is
// long enough to be read 16 at a time. What lies beyond the window is left as it is.
void mast_windowed_frames(
    const float* waveform, int64_t clip_stride, const float* means, int64_t per_clip, int64_t first, int64_t count,
    int64_t shift, int64_t window, const float* taper, float preemphasis, float* out, int64_t out_stride, int threads) {
#pragma omp parallel for schedule(static) num_threads(threads)
    for (int64_t i = 0; i < count; ++i) {
        const int64_t n = first + i;
        const float* x = waveform + n / per_clip * clip_stride + n % per_clip * shift;
        windowed_frame(x, means[n], preemphasis, taper, window, out + i * out_stride);
    }
}

// Floats of scratch that a thread needs.
int64_t mast_scratch(int64_t bins, int64_t mels) { return bins * kLanes + mels * kGroup; }

// Complex spectra (count rows) -> out (clips, mels, per_clip): offset + scale * log(max(energy, floor)).
// Filter m has 4 * quads[m] weights, from bin starts[m] on, one filter's after another's in `weights`. Only the first
// `bins` bins are read, a multiple of 16. `scratch` has mast_scratch() floats for each thread.
void mast_log_mel(
    const float* spectra, int64_t spectrum_stride, int64_t per_clip, int64_t first, int64_t count, int64_t bins,
    int64_t mels, const int32_t* starts, const int32_t* quads, const float* weights, float floor, float offset,
    float scale, float* out, float* scratch, int threads) {
    const Filters filters = {mels, starts, quads, weights};
    const int64_t groups = (count + kGroup - 1) / kGroup;
#pragma omp parallel for schedule(static) num_threads(threads)
    for (int64_t group = 0; group < groups; ++group) {
#ifdef _OPENMP
        float* power = scratch + omp_get_thread_num() * mast_scratch(bins, mels);
#else
        float* power = scratch;
#endif
        float* energies = power + bins * kLanes;
        const int64_t begin = group * kGroup, end = begin + kGroup < count ? begin + kGroup : count;
        for (int64_t i = begin; i < end; i += kLanes) {
            const float* frames[kLanes];
            for (int lane = 0; lane < kLanes; ++lane)  // the last frame again, where there is none
                frames[lane] = spectra + (i + lane < end ? i + lane : end - 1) * spectrum_stride;
            powers(frames, bins, power);
            apply(filters, power, energies + (i - begin));
        }
        const int64_t n = first + begin, size = end - begin;
        const bool one_clip = n % per_clip + size <= per_clip;
        float* to = out + n / per_clip * mels * per_clip + n % per_clip;
        for (int64_t mel = 0; mel < mels; ++mel) {
            float* row = energies + mel * kGroup;
            float* result = one_clip && size == kGroup ? to + mel * per_clip : row;
            for (int64_t i = 0; i < size; i += kLanes) {
                const Floats x = load(row + i);
                store(result + i, offset + scale * log(x < floor ? Floats{} + floor : x));  // NaN stays
            }
            if (result != row) continue;
            for (int64_t i = 0; i < size; ++i) {
                const int64_t clip = (n + i) / per_clip, frame = (n + i) % per_clip;
                out[(clip * mels + mel) * per_clip + frame] = row[i];
            }
        }
    }
}
}
