// 3x3 depthwise convolution, forward and backward; channels come in whole vectors.

#pragma once

#include <algorithm>
#include <cstdint>
#include <type_traits>

#include "vectors.h"

namespace {

// Calls visit(width, c) for all channels, from c on `width` vectors, which the compiler can keep in registers.
template <typename Visit>
void by_width(int64_t dim, Visit visit) {
    int64_t c = 0;
    for (; c + 6 * kLanes <= dim; c += 6 * kLanes) visit(std::integral_constant<int, 6>(), c);
    for (; c + 2 * kLanes <= dim; c += 2 * kLanes) visit(std::integral_constant<int, 2>(), c);
    if (c < dim) visit(std::integral_constant<int, 1>(), c);
}

// Calls visit(width): the number of vectors of `dim` channels where they fit into registers, or else 0.
template <typename Visit>
void by_head(int64_t dim, Visit visit) {
    switch (dim / kLanes) {
        case 1: return visit(std::integral_constant<int, 1>());
        case 2: return visit(std::integral_constant<int, 2>());
        case 3: return visit(std::integral_constant<int, 3>());
        case 4: return visit(std::integral_constant<int, 4>());
        case 6: return visit(std::integral_constant<int, 6>());
        default: return visit(std::integral_constant<int, 0>());
    }
}

// A 3x3 depthwise convolution with padding 1 of an image with `dim` channels at each position, `stride` apart.
template <typename X>
struct Pooling {
    const X* image;
    const float* weight;  // (9, dim)
    int64_t stride, rows, columns, row_step, column_step, dim;

    int64_t out_rows() const { return (rows + row_step - 1) / row_step; }
    int64_t out_columns() const { return (columns + column_step - 1) / column_step; }
    int64_t offset(int64_t row, int64_t column) const { return (row * columns + column) * stride; }

    // Calls visit(tap, offset) for the taps of one output that lie within the image.
    template <typename Visit>
    void taps(int64_t out_row, int64_t out_column, Visit visit) const {
        const int64_t row = out_row * row_step - 1, column = out_column * column_step - 1;
        for (int i = std::max<int64_t>(0, -row); i < std::min<int64_t>(3, rows - row); ++i)
            for (int j = std::max<int64_t>(0, -column); j < std::min<int64_t>(3, columns - column); ++j)
                visit(3 * i + j, offset(row + i, column + j));
    }

    template <typename Y>
    void convolve(int64_t out_row, int64_t out_column, Y* out) const {
        const int64_t row = out_row * row_step - 1, column = out_column * column_step - 1;
        if (row >= 0 && row + 3 <= rows && column >= 0 && column + 3 <= columns)
            convolve_inside(image + offset(row, column), out);
        else
            by_width(dim, [&](auto width, int64_t c) {
                Floats sum[width] = {};
                taps(out_row, out_column, [&](int tap, int64_t offset) {
                    const X* x = image + offset + c;
                    const float* w = weight + tap * dim + c;
                    for (int v = 0; v < width; ++v) sum[v] += load(x + v * kLanes) * load(w + v * kLanes);
                });
                for (int v = 0; v < width; ++v) store(out + c + v * kLanes, sum[v]);
            });
    }

    // All channels of one output, `width` vectors.
    template <int width>
    void convolve_whole(int64_t out_row, int64_t out_column, Floats (&sum)[width]) const {
        for (int v = 0; v < width; ++v) sum[v] = Floats{};
        const int64_t row = out_row * row_step - 1, column = out_column * column_step - 1;
        if (row >= 0 && row + 3 <= rows && column >= 0 && column + 3 <= columns) {
            const X* corner = image + offset(row, column);
#pragma GCC unroll 3
            for (int i = 0; i < 3; ++i)
#pragma GCC unroll 3
                for (int j = 0; j < 3; ++j) add(corner + offset(i, j), 3 * i + j, sum);
        } else {
            taps(out_row, out_column, [&](int tap, int64_t offset) { add(image + offset, tap, sum); });
        }
    }

    template <int width>
    void add(const X* x, int tap, Floats (&sum)[width]) const {
        const float* w = weight + tap * width * kLanes;
        for (int v = 0; v < width; ++v) sum[v] += load(x + v * kLanes) * load(w + v * kLanes);
    }

    // Where all nine taps lie within the image, from `corner` on.
    template <typename Y>
    void convolve_inside(const X* corner, Y* out) const {
        by_width(dim, [&](auto width, int64_t c) {
            Floats sum[width] = {};
#pragma GCC unroll 3
            for (int i = 0; i < 3; ++i) {
#pragma GCC unroll 3
                for (int j = 0; j < 3; ++j) {
                    const X* x = corner + offset(i, j) + c;
                    const float* w = weight + (3 * i + j) * dim + c;
                    for (int v = 0; v < width; ++v) sum[v] += load(x + v * kLanes) * load(w + v * kLanes);
                }
            }
            for (int v = 0; v < width; ++v) store(out + c + v * kLanes, sum[v]);
        });
    }

    // Adds to the gradient of the image, laid out like it, what comes from one output's.
    void scatter(int64_t out_row, int64_t out_column, const float* grad, float* grad_image) const {
        taps(out_row, out_column, [&](int tap, int64_t offset) {
            const float* w = weight + tap * dim;
            float* to = grad_image + offset;
            for (int64_t c = 0; c < dim; c += kLanes)
                store(to + c, load(to + c) + load(grad + c) * load(w + c));
        });
    }

    // Adds what one row of outputs contributes to the gradient of a tap; grads: of this row.
    void weight_gradient(int tap, int64_t out_row, const float* grads, float* grad_tap) const {
        const int64_t row = out_row * row_step + tap / 3 - 1;
        if (row < 0 || row >= rows) return;
        by_width(dim, [&](auto width, int64_t c) {
            Floats sum[width];
            for (int v = 0; v < width; ++v) sum[v] = load(grad_tap + c + v * kLanes);
            for (int64_t output = 0; output < out_columns(); ++output) {
                const int64_t column = output * column_step + tap % 3 - 1;
                if (column < 0 || column >= columns) continue;
                const X* x = image + offset(row, column) + c;
                const float* g = grads + output * dim + c;
                for (int v = 0; v < width; ++v) sum[v] += load(x + v * kLanes) * load(g + v * kLanes);
            }
            for (int v = 0; v < width; ++v) store(grad_tap + c + v * kLanes, sum[v]);
        });
    }
};

}  // namespace
