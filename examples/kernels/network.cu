// What a network needs beside batch normalization and matrix products, in f32; rows lie one after the other.
// `examples/train/backend/cuda.rs` checks the lengths.
#include "element.cuh"

/// Rounded from f64: that of f32 is made of instructions which only bound their error.
__device__ inline float exponential(float v) { return float(exp(double(v))); }

extern "C" __global__ void add_bias(const float *bias, float *y, u64 columns, u64 count) {
    const u64 i = element();
    if (i < count) y[i] += bias[i % columns];
}

/// A thread for every column, which adds up in the order of the rows.
extern "C" __global__ void sum_rows(const float *grad_y, float *grad_bias, u64 rows, u64 columns) {
    const u64 column = element();
    if (column >= columns) return;
    float sum = 0;
    for (u64 row = 0; row < rows; row++) sum += grad_y[row * columns + column];
    grad_bias[column] = sum;
}

extern "C" __global__ void sigmoid(float *y, u64 count) {
    const u64 i = element();
    if (i < count) y[i] = 1 / (1 + exponential(-y[i]));
}

extern "C" __global__ void sigmoid_backward(const float *y, float *grad, u64 count) {
    const u64 i = element();
    if (i < count) grad[i] *= y[i] * (1 - y[i]);
}

/// Keeps NaN.
extern "C" __global__ void relu(float *y, u64 count) {
    const u64 i = element();
    if (i < count && y[i] < 0) y[i] = 0;
}

extern "C" __global__ void relu_backward(const float *y, float *grad, u64 count) {
    const u64 i = element();
    if (i < count && y[i] <= 0) grad[i] = 0;
}

extern "C" __global__ void sgd(float learning_rate, const float *grad, float *value, u64 count) {
    const u64 i = element();
    if (i < count) value[i] -= learning_rate * grad[i];
}

constexpr unsigned THREADS = 128;

/// Softmax and cross-entropy in one block of THREADS: the mean loss and the number of right rows to `scores`, the
/// gradient to `grad` unless that is null. A label that is no class makes the loss NaN, and reads nothing.
extern "C" __global__ void __launch_bounds__(THREADS)
    cross_entropy(const float *logits, const unsigned char *labels, float *scores, float *grad, u64 rows, u64 classes) {
    __shared__ double losses[THREADS];
    __shared__ unsigned rights[THREADS];
    double loss = 0;
    unsigned right = 0;
    for (u64 row = threadIdx.x; row < rows; row += THREADS) {
        const float *of = logits + row * classes;
        const u64 label = labels[row];
        // The largest logit is taken off, so that no exponential overflows; of equal ones the first counts.
        float max = of[0];
        u64 first = 0;
        for (u64 k = 1; k < classes; k++) {
            // Past a NaN too, as the host's maximum goes.
            if (of[k] > max || (max != max && of[k] == of[k])) {
                max = of[k];
                first = k;
            }
        }
        float sum = 0;
        for (u64 k = 0; k < classes; k++) sum += exponential(of[k] - max);
        const float own = label < classes ? of[label] : nanf("");
        loss += double(logf(sum) - (own - max));
        right += first == label && isfinite(sum);
        if (grad != nullptr) {
            for (u64 k = 0; k < classes; k++) {
                grad[row * classes + k] = (exponential(of[k] - max) / sum - (k == label)) / float(rows);
            }
        }
    }
    losses[threadIdx.x] = loss;
    rights[threadIdx.x] = right;
    __syncthreads();
    for (unsigned half = THREADS / 2; half > 0; half /= 2) {
        if (threadIdx.x < half) {
            losses[threadIdx.x] += losses[threadIdx.x + half];
            rights[threadIdx.x] += rights[threadIdx.x + half];
        }
        __syncthreads();
    }
    if (threadIdx.x == 0) {
        scores[0] = float(losses[0] / double(rows));
        scores[1] = float(rights[0]);
    }
}
