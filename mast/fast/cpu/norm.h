// LayerNorm of one position's channels, forward and backward; channels come in whole vectors.

#pragma once

#include <cmath>
#include <cstdint>

#include "vectors.h"

namespace {

struct Moments {
    float mean, rstd;
};

template <typename X>
Moments moments(const X* x, int64_t dim, float eps) {
    Floats sum = {}, squares = {};
    for (int64_t c = 0; c < dim; c += kLanes) sum += load(x + c);
    const float mean = total(sum) / dim;
    for (int64_t c = 0; c < dim; c += kLanes) squares += (load(x + c) - mean) * (load(x + c) - mean);
    return {mean, 1.0f / std::sqrt(total(squares) / dim + eps)};
}

template <typename X, typename Y>
void normalise(const X* x, const float* weight, const float* bias, Y* y, int64_t dim, float eps) {
    const Moments m = moments(x, dim, eps);
    for (int64_t c = 0; c < dim; c += kLanes)
        store(y + c, (load(x + c) - m.mean) * m.rstd * load(weight + c) + load(bias + c));
}

// The gradient of x into grad_x, which may be grad itself, plus `more`, if there is any; adds to those of the weight and
// the bias.
template <typename X, typename G>
void normalise_backward(const X* x, const float* weight, const G* grad, const G* more, G* grad_x, float* grad_weight,
                        float* grad_bias, int64_t dim, float eps) {
    const Moments m = moments(x, dim, eps);
    Floats sums = {}, dots = {};
    for (int64_t c = 0; c < dim; c += kLanes) {
        const Floats hat = (load(x + c) - m.mean) * m.rstd, g = load(grad + c), weighted = g * load(weight + c);
        sums += weighted;
        dots += weighted * hat;
        store(grad_weight + c, load(grad_weight + c) + g * hat);
        store(grad_bias + c, load(grad_bias + c) + g);
    }
    const float sum = total(sums) / dim, dot = total(dots) / dim;
    for (int64_t c = 0; c < dim; c += kLanes) {
        const Floats hat = (load(x + c) - m.mean) * m.rstd;
        const Floats through = (load(grad + c) * load(weight + c) - sum - hat * dot) * m.rstd;
        store(grad_x + c, more ? through + load(more + c) : through);
    }
}

// The same of `width` vectors in registers.
template <int width>
Moments moments(const Floats (&x)[width], float eps) {
    Floats sum = x[0], squares = {};
    for (int v = 1; v < width; ++v) sum += x[v];
    const float mean = total(sum) / (width * kLanes);
    for (int v = 0; v < width; ++v) squares += (x[v] - mean) * (x[v] - mean);
    return {mean, 1.0f / std::sqrt(total(squares) / (width * kLanes) + eps)};
}

template <int width, typename Y>
void normalise(const Floats (&x)[width], const float* weight, const float* bias, Y* y, float eps) {
    const Moments m = moments(x, eps);
    for (int v = 0, c = 0; v < width; ++v, c += kLanes)
        store(y + c, (x[v] - m.mean) * m.rstd * load(weight + c) + load(bias + c));
}

template <int width>
void normalise_backward(const Floats (&x)[width], const float* weight, const Floats (&grad)[width], float* grad_x,
                        float* grad_weight, float* grad_bias, float eps) {
    const Moments m = moments(x, eps);
    Floats sums = {}, dots = {}, hat[width], weighted[width];
    for (int v = 0, c = 0; v < width; ++v, c += kLanes) {
        hat[v] = (x[v] - m.mean) * m.rstd;
        weighted[v] = grad[v] * load(weight + c);
        sums += weighted[v];
        dots += weighted[v] * hat[v];
        store(grad_weight + c, load(grad_weight + c) + grad[v] * hat[v]);
        store(grad_bias + c, load(grad_bias + c) + grad[v]);
    }
    const float sum = total(sums) / (width * kLanes), dot = total(dots) / (width * kLanes);
    for (int v = 0, c = 0; v < width; ++v, c += kLanes)
        store(grad_x + c, (weighted[v] - sum - hat[v] * dot) * m.rstd);
}

}  // namespace
