// Log-mel filter banks: what lies before and behind the transform, and both around it while data is in the cache.
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

#include "vectors.h"

namespace {

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

// Frames whose results are written together. They are neighbours in a row of the output, so that whole cache lines are
// written at once: rows are often 4 KiB apart, where many half-written lines would evict each other.
constexpr int kGroup = 64;
// Frames that are transformed together: with their spectra 128 KiB at 512 samples, far from filling a core's cache.
constexpr int kBatch = 32;

// DftiComputeForward of kBatch frames, out of place.
typedef long (*Transform)(void* descriptor, const float* frames, float* spectra);

// mast/fast/cpu/frontend.py declares the same fields.
struct Job {
    const float* waveform;  // (clips, samples)
    int64_t clip_stride;
    const float* means;  // of each frame, or null to have them computed here
    int64_t per_clip, shift, window;
    const float* taper;  // the window, which begins with a zero, and zeros up to a multiple of 16
    int64_t fft_size;    // a multiple of 32
    int64_t mels;
    const int32_t *starts, *quads;  // filter m has 4 * quads[m] weights, from bin starts[m] on
    const float* weights;           // one filter's after another's
    float* out;                     // (clips, mels, per_clip)
    Transform transform;            // or null
    void* descriptor;
    float preemphasis, floor, offset, scale;
    int32_t threads;

    int64_t bins() const { return fft_size / 2; }  // without Nyquist's, which no filter covers
    int64_t spectrum() const { return fft_size + 2; }
};

// The sum over less than 512 samples in the order of torch's reductions on x86: four vectors of eight partial sums.
// Another order would round differently, and that shows in bins of almost no energy.
float sum(const float* x, int64_t size) {
    typedef float Eight __attribute__((vector_size(32)));
    const auto at = [&](int64_t i) {
        Eight value;
        std::memcpy(&value, x + 8 * i, sizeof value);
        return value;
    };
    Eight part[4] = {};
    const int64_t vectors = size / 8, whole = vectors / 4 * 4;
    for (int64_t i = 0; i < whole; i += 4)
        for (int k = 0; k < 4; ++k) part[k] += at(i + k);
    for (int64_t i = whole; i < vectors; ++i) part[0] += at(i);
    const Eight all = part[0] + part[1] + part[2] + part[3];
    float total = 0.0f;
    for (int64_t i = 8 * vectors; i < size; ++i) total += x[i];
    for (int k = 0; k < 8; ++k) total += all[k];
    return total;
}

// y[j] = (c[j] - preemphasis * c[j - 1]) * taper[j] with c = x - mean; c[-1] is 0. The order of rounding is Kaldi's.
void windowed_frame(const Job& job, int64_t n, float* y) {
    const float* x = job.waveform + n / job.per_clip * job.clip_stride + n % job.per_clip * job.shift;
    const float mean = job.means ? job.means[n] : sum(x, job.window) / static_cast<float>(job.window);
    Floats last = {};
    for (int64_t j = 0; j < job.window; j += kLanes) {
        const int64_t left = job.window - j;
        Floats samples = {};
        if (left >= kLanes)
            samples = load(x + j);
        else
            std::memcpy(&samples, x + j, left * sizeof(float));
        const Floats centred = samples - mean;
        const Floats value = (centred - job.preemphasis * before(last, centred, kAll)) * load(job.taper + j);
        last = centred;
        if (left >= kLanes)
            store(y + j, value);
        else
            std::memcpy(y + j, &value, left * sizeof(float));
    }
}

// Squared magnitudes of kLanes frames, a frame a lane: power[bin][lane]. Where fewer are left, the last is repeated.
void powers(const float* spectra, int64_t stride, int64_t left, int64_t bins, float* power) {
    const float* frames[kLanes];
    for (int lane = 0; lane < kLanes; ++lane) frames[lane] = spectra + (lane < left ? lane : left - 1) * stride;
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

// energies[mel][lane] of kLanes frames; rows are kGroup apart.
void filter(const Job& job, const float* power, float* energies) {
    const float* weight = job.weights;
    for (int64_t mel = 0; mel < job.mels; ++mel) {
        const float* bin = power + job.starts[mel] * int64_t{kLanes};
        Floats energy = {};
        for (int32_t quad = 0; quad < job.quads[mel]; ++quad, bin += 4 * kLanes, weight += 4)
            energy += (weight[0] * load(bin) + weight[1] * load(bin + kLanes)) +
                      (weight[2] * load(bin + 2 * kLanes) + weight[3] * load(bin + 3 * kLanes));
        store(energies + mel * kGroup, energy);
    }
}

// Energies of `size` frames from frame n on, rows kGroup apart -> job.out: offset + scale * log(max(energy, floor)).
void write(const Job& job, int64_t n, int64_t size, float* energies) {
    const bool direct = size == kGroup && n % job.per_clip + size <= job.per_clip;
    float* to = job.out + n / job.per_clip * job.mels * job.per_clip + n % job.per_clip;
    for (int64_t mel = 0; mel < job.mels; ++mel) {
        float* row = energies + mel * kGroup;
        float* result = direct ? to + mel * job.per_clip : row;
        for (int64_t i = 0; i < size; i += kLanes) {
            const Floats x = load(row + i);
            store(result + i, job.offset + job.scale * log(x < job.floor ? Floats{} + job.floor : x));  // NaN stays
        }
    }
    for (int64_t i = 0; i < size && !direct;) {
        const int64_t clip = (n + i) / job.per_clip, frame = (n + i) % job.per_clip;
        const int64_t here = size - i < job.per_clip - frame ? size - i : job.per_clip - frame;
        float* first = job.out + clip * job.mels * job.per_clip + frame;
        for (int64_t mel = 0; mel < job.mels; ++mel)
            std::memcpy(first + mel * job.per_clip, energies + mel * kGroup + i, here * sizeof(float));
        i += here;
    }
}

// `size` frames, at most kGroup, from frame n on. Without `spectra` they are made here.
long group(const Job& job, int64_t n, int64_t size, const float* spectra, float* scratch) {
    float* energies = scratch;
    float* power = energies + job.mels * kGroup;
    float* frames = power + job.bins() * kLanes;
    float* own = frames + kBatch * job.fft_size;
    for (int64_t i = 0; i < size; i += kBatch) {
        const int64_t stop = i + kBatch < size ? i + kBatch : size;
        const float* from = spectra + i * job.spectrum();
        if (!spectra) {
            for (int64_t k = i; k < stop; ++k) windowed_frame(job, n + k, frames + (k - i) * job.fft_size);
            if (const long status = job.transform(job.descriptor, frames, own)) return status;
            from = own;
        }
        for (int64_t k = i; k < stop; k += kLanes) {
            powers(from + (k - i) * job.spectrum(), job.spectrum(), stop - k, job.bins(), power);
            filter(job, power, energies + k);
        }
    }
    write(job, n, size, energies);
    return 0;
}

}  // namespace

extern "C" {

// Of `size` samples each, less than 512, `stride` apart.
void mast_means(const float* rows, int64_t stride, int64_t size, int64_t count, float* means) {
    for (int64_t i = 0; i < count; ++i) means[i] = sum(rows + i * stride, size) / static_cast<float>(size);
}

int64_t mast_batch() { return kBatch; }

// Floats of scratch that a thread needs, zeros at first.
int64_t mast_scratch(const Job* job) {
    const int64_t own = kBatch * (job->fft_size + job->spectrum());
    return (job->mels * kGroup + job->bins() * kLanes + own + 15) / 16 * 16;
}

// frames[i][j], j < window, of frame first + i. What lies beyond the window is left as it is.
void mast_windowed_frames(const Job* job, int64_t first, int64_t count, float* frames) {
#pragma omp parallel for schedule(static) num_threads(job->threads)
    for (int64_t i = 0; i < count; ++i) windowed_frame(*job, first + i, frames + i * job->fft_size);
}

// Log-mel of `count` frames from frame `first` on. `spectra` (count rows) is null where the job has a transform.
// Returns what the transform did that failed, otherwise 0.
long mast_log_mel(const Job* job, int64_t first, int64_t count, const float* spectra, float* scratch) {
    const int64_t groups = (count + kGroup - 1) / kGroup;
    long failed = 0;
#pragma omp parallel for schedule(dynamic) num_threads(job->threads) reduction(max : failed)
    for (int64_t index = 0; index < groups; ++index) {
#ifdef _OPENMP
        float* mine = scratch + omp_get_thread_num() * mast_scratch(job);
#else
        float* mine = scratch;
#endif
        const int64_t begin = index * kGroup, size = begin + kGroup < count ? kGroup : count - begin;
        const float* from = spectra ? spectra + begin * job->spectrum() : nullptr;
        const long status = group(*job, first + begin, size, from, mine);
        failed = status > failed ? status : failed;
    }
    return failed;
}
}
