// Images for convolutions as matrix products: 3x3 windows with zeros around, and the mean of square windows. In f32,
// in either layout; `examples/cnn/spatial/cuda.rs` checks the lengths.
#include "element.cuh"

struct Images {
    unsigned count, channels, height, width;
    /// 1 for NHWC, 0 for NCHW.
    unsigned channels_last;
};

constexpr unsigned TAPS = 9;

struct Pixel {
    unsigned image, channel, y, x;
};

/// Of an element of images of so many channels, height and width.
__device__ Pixel pixel(u64 i, unsigned channels, unsigned height, unsigned width, unsigned channels_last) {
    Pixel p;
    if (channels_last) {
        p.channel = i % channels;
        i /= channels;
    }
    p.x = i % width;
    i /= width;
    p.y = i % height;
    i /= height;
    if (!channels_last) {
        p.channel = i % channels;
        i /= channels;
    }
    p.image = i;
    return p;
}

__device__ u64 index(const Pixel &p, unsigned channels, unsigned height, unsigned width, unsigned channels_last) {
    return channels_last ? ((u64(p.image) * height + p.y) * width + p.x) * channels + p.channel
                         : ((u64(p.image) * channels + p.channel) * height + p.y) * width + p.x;
}

/// What the windows of images are, as images: a channel for every tap of every channel. A thread for each element.
extern "C" __global__ void im2col(Images of, const float *x, float *columns, u64 count) {
    const u64 i = element();
    if (i >= count) return;
    Pixel p = pixel(i, of.channels * TAPS, of.height, of.width, of.channels_last);
    const unsigned tap = p.channel % TAPS;
    p.channel /= TAPS;
    // Left of or above the image these wrap around to large numbers.
    p.y += tap / 3 - 1;
    p.x += tap % 3 - 1;
    const bool inside = p.y < of.height && p.x < of.width;
    columns[i] = inside ? x[index(p, of.channels, of.height, of.width, of.channels_last)] : 0;
}

/// Its gradient, added to what is there if `accumulate`: a thread for each element of the images adds up the windows
/// that it is in, always in the same order.
extern "C" __global__ void col2im(Images of, const float *grad_columns, unsigned accumulate, float *grad_x, u64 count) {
    const u64 i = element();
    if (i >= count) return;
    const Pixel p = pixel(i, of.channels, of.height, of.width, of.channels_last);
    float sum = accumulate ? grad_x[i] : 0;
    for (unsigned tap = 0; tap < TAPS; tap++) {
        const Pixel q = {p.image, p.channel * TAPS + tap, p.y + 1 - tap / 3, p.x + 1 - tap % 3};
        if (q.y < of.height && q.x < of.width) {
            sum += grad_columns[index(q, of.channels * TAPS, of.height, of.width, of.channels_last)];
        }
    }
    grad_x[i] = sum;
}

/// Means of windows of size x size, which touch and do not overlap. A thread for each of them.
extern "C" __global__ void mean_pool(Images of, unsigned size, const float *x, float *y, u64 count) {
    const u64 i = element();
    if (i >= count) return;
    const Pixel p = pixel(i, of.channels, of.height / size, of.width / size, of.channels_last);
    float sum = 0;
    for (unsigned k = 0; k < size * size; k++) {
        const Pixel q = {p.image, p.channel, p.y * size + k / size, p.x * size + k % size};
        sum += x[index(q, of.channels, of.height, of.width, of.channels_last)];
    }
    y[i] = sum / float(size * size);
}

/// Its gradient, a thread for each element of the images.
extern "C" __global__ void mean_pool_backward(Images of, unsigned size, const float *grad_y, float *grad_x, u64 count) {
    const u64 i = element();
    if (i >= count) return;
    const Pixel p = pixel(i, of.channels, of.height, of.width, of.channels_last);
    const Pixel q = {p.image, p.channel, p.y / size, p.x / size};
    grad_x[i] = grad_y[index(q, of.channels, of.height / size, of.width / size, of.channels_last)] / float(size * size);
}
