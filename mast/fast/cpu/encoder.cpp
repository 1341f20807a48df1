// What lies between the matrix products of MAST's blocks, forward and backward: LayerNorm, GELU, pooling and softmax.
//
// What flows through the blocks is made of `Value`s, float32 or bfloat16; parameters, their gradients and all that is
// summed up are float32. Tensors are contiguous unless strides are given; sizes and strides are in values. Channels come
// in whole vectors. Work is shared out in fixed parts, so results depend on the number of threads, but not on their
// speed.

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <vector>

#include "norm.h"
#include "pooling.h"
#include "vectors.h"

namespace {

// e^x for x <= 0, within 1 unit in the last place or so (Cephes' expf); 0 where that is no normal number.
Floats exponential(Floats x) {
    const Floats clipped = x < -87.0f ? Floats{} - 87.0f : x;
    const Floats shifted = clipped * 1.44269504f + 12582912.0f;  // the nearest integer, in the low bits
    const Floats n = shifted - 12582912.0f;
    const Floats r = (clipped - n * 0.693359375f) + n * 2.12194440e-4f;
    Floats p = 1.9875691500e-4f * r + 1.3981999507e-3f;
    p = p * r + 8.3334519073e-3f;
    p = p * r + 4.1665795894e-2f;
    p = p * r + 1.6666665459e-1f;
    p = p * r + 5.0000001201e-1f;
    p = p * r * r + r + 1.0f;
    // The integer is added to the exponent of p, which lies around 1.
    return (Floats)((Ints)p + (((Ints)shifted - 0x4b400000) << 23));
}

// The normal distribution: its density times sqrt(2 pi) is `bell`, its integral up to x is `below`. Abramowitz and
// Stegun 7.1.26, within 1.5e-7.
void normal(Floats x, Floats& bell, Floats& below) {
    bell = exponential(-0.5f * x * x);
    const Floats t = 1.0f / (1.0f + 0.3275911f * 0.70710678f * (x < 0.0f ? -x : x));
    Floats p = 1.061405429f * t - 1.453152027f;
    p = p * t + 1.421413741f;
    p = p * t - 0.284496736f;
    p = p * t + 0.254829592f;
    const Floats tail = 0.5f * p * t * bell;
    below = x < 0.0f ? tail : 1.0f - tail;
}

constexpr float kDensity = 0.39894228f;  // 1 / sqrt(2 pi)

// Sums the threads' shares, (threads, size), in their order.
void gather(const std::vector<float>& shares, int threads, int64_t size, float* total) {
    std::memcpy(total, shares.data(), size * sizeof(float));
    for (int thread = 1; thread < threads; ++thread)
        for (int64_t i = 0; i < size; ++i) total[i] += shares[thread * size + i];
}

int64_t part(int64_t count, int index, int parts) { return count * index / parts; }

}  // namespace

extern "C" {

// Channels must be a multiple of this.
int64_t mast_lanes() { return kLanes; }

void mast_layer_norm(const Value* x, const float* weight, const float* bias, Value* y, int64_t rows, int64_t dim,
                     float eps, int threads) {
#pragma omp parallel for num_threads(threads) schedule(static)
    for (int64_t row = 0; row < rows; ++row) normalise(x + row * dim, weight, bias, y + row * dim, dim, eps);
}

// grad_affine: (2, dim), of the weight and of the bias. grad_x may be grad; `more`, if given, is added to it.
void mast_layer_norm_backward(const Value* x, const float* weight, const Value* grad, const Value* more,
                              Value* grad_x, float* grad_affine, int64_t rows, int64_t dim, float eps, int threads) {
    std::vector<float> shares(threads * 2 * dim);
#pragma omp parallel for num_threads(threads) schedule(static)
    for (int thread = 0; thread < threads; ++thread) {
        float* share = shares.data() + thread * 2 * dim;
        for (int64_t row = part(rows, thread, threads); row < part(rows, thread + 1, threads); ++row)
            normalise_backward(x + row * dim, weight, grad + row * dim, more ? more + row * dim : nullptr,
                               grad_x + row * dim, share, share + dim, dim, eps);
    }
    gather(shares, threads, 2 * dim, grad_affine);
}

// branch becomes x + share * (branch + bias), with a share for each sample, or 1; all (samples, rows, dim).
void mast_add_residual(Value* branch, const Value* x, const float* bias, const float* shares, int64_t samples,
                       int64_t rows, int64_t dim, int threads) {
#pragma omp parallel for num_threads(threads) schedule(static)
    for (int64_t row = 0; row < samples * rows; ++row) {
        const float share = shares ? shares[row / rows] : 1.0f;
        Value* to = branch + row * dim;
        for (int64_t c = 0; c < dim; c += kLanes)
            store(to + c, load(x + row * dim + c) + share * (load(to + c) + load(bias + c)));
    }
}

// y = GELU(x + bias), both (rows, dim).
void mast_gelu(const Value* x, const float* bias, Value* y, int64_t rows, int64_t dim, int threads) {
#pragma omp parallel for num_threads(threads) schedule(static)
    for (int64_t row = 0; row < rows; ++row) {
        for (int64_t c = 0; c < dim; c += kLanes) {
            const Floats value = load(x + row * dim + c) + load(bias + c);
            Floats bell, below;
            normal(value, bell, below);
            store(y + row * dim + c, value * below);
        }
    }
}

// activated: GELU(x + bias), both (rows, dim). grad: of the former, becomes that of x. grad_bias (dim): the sum of the
// latter.
void mast_gelu_backward(const Value* x, const float* bias, Value* grad, Value* activated, float* grad_bias,
                        int64_t rows, int64_t dim, int threads) {
    std::vector<float> shares(threads * dim);
#pragma omp parallel for num_threads(threads) schedule(static)
    for (int thread = 0; thread < threads; ++thread) {
        float* share = shares.data() + thread * dim;
        for (int64_t row = part(rows, thread, threads); row < part(rows, thread + 1, threads); ++row) {
            const Value* h = x + row * dim;
            Value *g = grad + row * dim, *y = activated + row * dim;
            for (int64_t c = 0; c < dim; c += kLanes) {
                const Floats value = load(h + c) + load(bias + c);
                Floats bell, below;
                normal(value, bell, below);
                store(y + c, value * below);
                const Floats gradient = load(g + c) * (below + value * kDensity * bell);
                store(g + c, gradient);
                store(share + c, load(share + c) + gradient);
            }
        }
    }
    gather(shares, threads, dim, grad_bias);
}

// Pools each head's channels: x, images of (rows, columns) positions `stride` apart that hold heads * dim channels ->
// y (batch, heads, rows', columns', dim). weight: (9, dim).
void mast_pool(const Value* x, int64_t stride, const float* weight, const float* scale, const float* bias, Value* y,
               int64_t batch, int64_t heads, int64_t rows, int64_t columns, int64_t row_step, int64_t column_step,
               int64_t dim, float eps, int threads) {
    const int64_t out_rows = (rows + row_step - 1) / row_step, out_columns = (columns + column_step - 1) / column_step;
#pragma omp parallel num_threads(threads)
    {
        std::vector<float> sum(dim);
#pragma omp for schedule(static)
        for (int64_t item = 0; item < batch * out_rows; ++item) {
            const int64_t out_row = item % out_rows, sample = item / out_rows;
            for (int64_t column = 0; column < out_columns; ++column) {
                // Heads lie side by side in x, so that they are read together.
                for (int64_t head = 0; head < heads; ++head) {
                    const Value* image = x + sample * rows * columns * stride + head * dim;
                    const Pooling<Value> pooling{image, weight, stride, rows, columns, row_step, column_step, dim};
                    Value* to = y + (((sample * heads + head) * out_rows + out_row) * out_columns + column) * dim;
                    by_head(dim, [&](auto width) {
                        if constexpr (width > 0) {
                            Floats convolved[width];
                            pooling.convolve_whole(out_row, column, convolved);
                            normalise(convolved, scale, bias, to, eps);
                        } else {
                            pooling.convolve(out_row, column, sum.data());
                            normalise(sum.data(), scale, bias, to, dim, eps);
                        }
                    });
                }
            }
        }
    }
}

// Gradients of mast_pool. That of y is the sum of `terms` tensors, each with strides of batch, head, row and column.
// grad_x, with x's stride, is overwritten; grad_affine (11, dim): of the nine taps, of scale and of bias.
void mast_pool_backward(const Value* x, int64_t stride, const float* weight, const float* scale, int64_t terms,
                        const Value* const* grads, const int64_t* grad_strides, Value* grad_x, float* grad_affine,
                        int64_t batch, int64_t heads, int64_t rows, int64_t columns, int64_t row_step,
                        int64_t column_step, int64_t dim, float eps, int threads) {
    const int64_t images = batch * heads, size = 11 * dim;
    const int64_t out_rows = (rows + row_step - 1) / row_step, out_columns = (columns + column_step - 1) / column_step;
    std::vector<float> shares(threads * size), reversed(9 * dim);
    for (int tap = 0; tap < 9; ++tap) std::copy_n(weight + tap * dim, dim, reversed.data() + (8 - tap) * dim);
#pragma omp parallel for num_threads(threads) schedule(static)
    for (int thread = 0; thread < threads; ++thread) {
        float* share = shares.data() + thread * size;
        std::vector<float> sum(dim), convolved(out_rows * out_columns * dim);
        std::vector<float> scattered(row_step * column_step > 1 ? rows * columns * dim : 0);
        for (int64_t image = part(images, thread, threads); image < part(images, thread + 1, threads); ++image) {
            const int64_t start = image / heads * rows * columns * stride + image % heads * dim;
            const Pooling<Value> pooling{x + start, weight, stride, rows, columns, row_step, column_step, dim};
            for (int64_t row = 0; row < out_rows; ++row) {
                float *line = convolved.data() + row * out_columns * dim, *g = line;
                const auto each_grad = [&](int64_t column, auto visit) {
                    for (int64_t term = 0; term < terms; ++term) {
                        const int64_t* step = grad_strides + 4 * term;
                        visit(grads[term] + image / heads * step[0] + image % heads * step[1] + row * step[2] +
                              column * step[3]);
                    }
                };
                float *grad_scale = share + 9 * dim, *grad_bias = share + 10 * dim;
                by_head(dim, [&](auto width) {
                    for (int64_t column = 0; column < out_columns; ++column, g += dim) {
                        if constexpr (width > 0) {
                            Floats grad[width] = {}, pooled[width];
                            each_grad(column, [&](const Value* from) {
                                for (int v = 0; v < width; ++v) grad[v] += load(from + v * kLanes);
                            });
                            pooling.convolve_whole(row, column, pooled);
                            normalise_backward(pooled, scale, grad, g, grad_scale, grad_bias, eps);
                        } else {
                            std::fill_n(g, dim, 0.0f);
                            each_grad(column, [&](const Value* from) {
                                for (int64_t c = 0; c < dim; c += kLanes) store(g + c, load(g + c) + load(from + c));
                            });
                            pooling.convolve(row, column, sum.data());
                            normalise_backward<float, float>(sum.data(), scale, g, nullptr, g, grad_scale, grad_bias,
                                                             dim, eps);
                        }
                    }
                });
                for (int tap = 0; tap < 9; ++tap) pooling.weight_gradient(tap, row, line, share + tap * dim);
            }
            Value* to = grad_x + start;
            if (scattered.empty()) {  // the way back is the same convolution with its taps in reverse
                const Pooling<float> reverse{convolved.data(), reversed.data(), dim, rows, columns, 1, 1, dim};
                for (int64_t row = 0; row < rows; ++row)
                    for (int64_t column = 0; column < columns; ++column)
                        reverse.convolve(row, column, to + pooling.offset(row, column));
                continue;
            }
            std::fill(scattered.begin(), scattered.end(), 0.0f);
            const Pooling<float> packed{nullptr, weight, dim, rows, columns, row_step, column_step, dim};
            for (int64_t row = 0; row < out_rows; ++row)
                for (int64_t column = 0; column < out_columns; ++column)
                    packed.scatter(row, column, convolved.data() + (row * out_columns + column) * dim, scattered.data());
            for (int64_t position = 0; position < rows * columns; ++position)
                for (int64_t c = 0; c < dim; c += kLanes)
                    store(to + position * stride + c, load(scattered.data() + position * dim + c));
        }
    }
    gather(shares, threads, size, grad_affine);
}

// One row of scores for each query, (heads, queries, key_rows * key_columns), becomes weights:
// softmax(factor * (score + by_row[key's row] + by_column[key's column])). The position scores have strides of head,
// query row and query column; queries are counted from `first`, row by row.
void mast_softmax(Value* scores, const Value* by_row, const int64_t* row_strides, const Value* by_column,
                  const int64_t* column_strides, int64_t heads, int64_t queries, int64_t first, int64_t query_columns,
                  int64_t key_rows, int64_t key_columns, float factor, int threads) {
    const int64_t keys = key_rows * key_columns, padded = (keys + kLanes - 1) / kLanes * kLanes;
#pragma omp parallel num_threads(threads)
    {
        std::vector<float> sums_of_keys(padded), along(key_columns);
        float* line = sums_of_keys.data();
#pragma omp for schedule(static)
        for (int64_t item = 0; item < heads * queries; ++item) {
            const int64_t head = item / queries, query = first + item % queries;
            const int64_t row = query / query_columns, column = query % query_columns;
            const Value* r = by_row + head * row_strides[0] + row * row_strides[1] + column * row_strides[2];
            const Value* t = by_column + head * column_strides[0] + row * column_strides[1] + column * column_strides[2];
            Value* s = scores + item * keys;
            for (int64_t j = 0; j < key_columns; ++j) along[j] = number(t[j]);
            Floats highests = Floats{} - INFINITY;
            float highest = -INFINITY;
            for (int64_t i = 0; i < key_rows; ++i) {
                const Value* from = s + i * key_columns;
                float* to = line + i * key_columns;
                const float by = number(r[i]);
                int64_t j = 0;
                for (; j + kLanes <= key_columns; j += kLanes) {
                    const Floats x = factor * (load(from + j) + (load(along.data() + j) + by));
                    store(to + j, x);
                    highests = x > highests ? x : highests;
                }
                for (; j < key_columns; ++j) {
                    to[j] = factor * (number(from[j]) + (along[j] + by));
                    highest = std::max(highest, to[j]);
                }
            }
            for (int lane = 0; lane < kLanes; ++lane) highest = std::max(highest, highests[lane]);
            std::fill(line + keys, line + padded, -INFINITY);
            Floats sums = {};
            for (int64_t k = 0; k < padded; k += kLanes) {
                const Floats x = exponential(load(line + k) - highest);
                sums += x;
                store(line + k, x);
            }
            const float share = 1.0f / total(sums);
            int64_t k = 0;
            for (; k + kLanes <= keys; k += kLanes) store(s + k, load(line + k) * share);
            if (k < keys) store_some(s + k, load(line + k) * share, keys - k);
        }
    }
}

// grad (heads, queries, keys), of the weights, becomes that of the scores before the softmax's factor; its sums over
// key columns and rows go to grad_by_row and grad_by_column, laid out like the position scores.
void mast_softmax_backward(const Value* weights, Value* grad, Value* grad_by_row, const int64_t* row_strides,
                           Value* grad_by_column, const int64_t* column_strides, int64_t heads, int64_t queries,
                           int64_t first, int64_t query_columns, int64_t key_rows, int64_t key_columns, float factor,
                           int threads) {
#pragma omp parallel num_threads(threads)
    {
        std::vector<float> along(key_columns);
#pragma omp for schedule(static)
        for (int64_t item = 0; item < heads * queries; ++item) {
            const int64_t head = item / queries, query = first + item % queries, keys = key_rows * key_columns;
            const int64_t row = query / query_columns, column = query % query_columns;
            Value* r = grad_by_row + head * row_strides[0] + row * row_strides[1] + column * row_strides[2];
            Value* t = grad_by_column + head * column_strides[0] + row * column_strides[1] + column * column_strides[2];
            const Value* w = weights + item * keys;
            Value* g = grad + item * keys;
            float dot = 0.0f;
#pragma omp simd reduction(+ : dot)
            for (int64_t k = 0; k < keys; ++k) dot += number(w[k]) * number(g[k]);
            std::fill(along.begin(), along.end(), 0.0f);
            for (int64_t i = 0; i < key_rows; ++i) {
                const Value* v = w + i * key_columns;
                Value* line = g + i * key_columns;
                float sum = 0.0f;
#pragma omp simd reduction(+ : sum)
                for (int64_t j = 0; j < key_columns; ++j) {
                    const float x = factor * number(v[j]) * (number(line[j]) - dot);
                    line[j] = rounded(x);
                    sum += x;
                    along[j] += x;
                }
                r[i] = rounded(sum);
            }
            for (int64_t j = 0; j < key_columns; ++j) t[j] = rounded(along[j]);
        }
    }
}

}  // extern "C"
