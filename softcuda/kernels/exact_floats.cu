// IEEE arithmetic, bit by bit: out[op][i] from a[i], b[i], c[i]. The host's tables name the operations in this order.
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <stdint.h>

#define PUT(value) out[size_t(op++) * n + i] = (value)

extern "C" __global__ void floats_32(const float *as, const float *bs, const float *cs, float *out, int n) {
    const int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= n) return;
    const float a = as[i], b = bs[i], c = cs[i];
    int op = 0;
    PUT(__fadd_rn(a, b));
    PUT(__fsub_rn(a, b));
    PUT(__fmul_rn(a, b));
    PUT(__fmaf_rn(a, b, c));
    PUT(__fdiv_rn(a, b));
    PUT(__fsqrt_rn(a));
    PUT(__frcp_rn(a));
    PUT(__fadd_rn(fminf(a, b), 0.0f)); // + 0, as which of -0 and 0 is the less is left open
    PUT(__fadd_rn(fmaxf(a, b), 0.0f));
    PUT(fabsf(a));
    PUT(-a);
    PUT(rintf(a));
    PUT(a < b ? a : c);
    PUT(!(a < b) ? a : c); // true of what is unordered
    PUT(floorf(a));
    PUT(ceilf(a));
    PUT(truncf(a));
    PUT(a >= b ? a : c);
    PUT(a != b ? a : c);
}

extern "C" __global__ void floats_64(const double *as, const double *bs, const double *cs, double *out, int n) {
    const int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= n) return;
    const double a = as[i], b = bs[i], c = cs[i];
    int op = 0;
    PUT(__dadd_rn(a, b));
    PUT(__dsub_rn(a, b));
    PUT(__dmul_rn(a, b));
    PUT(__fma_rn(a, b, c));
    PUT(__ddiv_rn(a, b));
    PUT(__dsqrt_rn(a));
    PUT(__drcp_rn(a));
    PUT(__dadd_rn(fmin(a, b), 0.0));
    PUT(__dadd_rn(fmax(a, b), 0.0));
    PUT(fabs(a));
    PUT(-a);
    PUT(rint(a));
    PUT(a < b ? a : c);
    PUT(!(a < b) ? a : c);
    PUT(double(float(a)));
    PUT(double(__double2float_rz(a)));
}

/// To integers, which saturate; what is not a number becomes 0, or from f64 the smallest one.
extern "C" __global__ void to_integers(const float *as, int32_t *out, int n) {
    const int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= n) return;
    const float a = as[i];
    int op = 0;
    PUT(__float2int_rz(a));
    PUT(__float2int_rn(a));
    PUT(__float2int_rd(a));
    PUT(__float2int_ru(a));
    PUT(__float2uint_rz(a));
    PUT(__float2uint_rn(a));
    PUT(__double2int_rz(double(a) * 1.000000001));
}

extern "C" __global__ void from_integers(const int32_t *as, float *out, int n) {
    const int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= n) return;
    const int32_t a = as[i];
    int op = 0;
    PUT(__int2float_rn(a));
    PUT(__uint2float_rn(a));
    PUT(__ll2float_rn((long long)(a) * 4099));
    PUT(float(double(a)));
    PUT(__half2float(__int2half_rn(a)));
}

/// Every f16 and bf16: grid 256, block 256.
extern "C" __global__ void widen(float *out) {
    const int i = blockIdx.x * blockDim.x + threadIdx.x, n = 65536;
    int op = 0;
    PUT(__half2float(__ushort_as_half(i)));
    PUT(__bfloat162float(__ushort_as_bfloat16(i)));
    // Two by two, where a machine has its own instruction for that.
    const uint32_t both = i | i << 16;
    PUT(__high2float(reinterpret_cast<const __half2 &>(both)));
    PUT(__high2float(reinterpret_cast<const __nv_bfloat162 &>(both)));
}

extern "C" __global__ void narrow(const float *as, uint16_t *f16, uint16_t *bf16, int n) {
    const int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= n) return;
    const float a = as[i];
    f16[i] = __half_as_ushort(__float2half_rn(a));
    f16[n + i] = __half_as_ushort(__float2half_rz(a));
    f16[2 * n + i] = __half_as_ushort(__high2half(__floats2half2_rn(0, a)));
    bf16[i] = __bfloat16_as_ushort(__float2bfloat16_rn(a));
    bf16[n + i] = __bfloat16_as_ushort(__high2bfloat16(__floats2bfloat162_rn(0, a)));
}

extern "C" __global__ void halves(const __half *as, const __half *bs, const __half *cs, __half *out, int n) {
    const int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= n) return;
    const __half a = as[i], b = bs[i], c = cs[i];
    const __half2 aa = __halves2half2(a, b), bb = __halves2half2(b, c), cc = __halves2half2(c, a);
    int op = 0;
    PUT(__hadd_rn(a, b));
    PUT(__hsub_rn(a, b));
    PUT(__hmul_rn(a, b));
    PUT(__hfma(a, b, c));
    PUT(__low2half(__hfma2(aa, bb, cc)));
    PUT(__high2half(__hfma2(aa, bb, cc)));
    PUT(__hneg(a));
    PUT(__hlt(a, b) ? a : c);
}

#if __CUDA_ARCH__ >= 800
extern "C" __global__ void halves_80(const __half *as, const __half *bs, __half *out, int n) {
    const int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= n) return;
    int op = 0;
    PUT(__hmax(as[i], bs[i]));
    PUT(__hmin(as[i], bs[i]));
}

extern "C" __global__ void bfloats(const __nv_bfloat16 *as, const __nv_bfloat16 *bs, const __nv_bfloat16 *cs,
                                   __nv_bfloat16 *out, int n) {
    const int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= n) return;
    const __nv_bfloat16 a = as[i], b = bs[i], c = cs[i];
    const __nv_bfloat162 aa = __halves2bfloat162(a, b), bb = __halves2bfloat162(b, c), cc = __halves2bfloat162(c, a);
    int op = 0;
    PUT(__hfma(a, b, c));
    PUT(__low2bfloat16(__hfma2(aa, bb, cc)));
    PUT(__high2bfloat16(__hfma2(aa, bb, cc)));
    PUT(__hmax(a, b));
    PUT(__hmin(a, b));
}
#endif

/// Inside documented bounds, not bit by bit.
extern "C" __global__ void approximate(const float *as, float *out, int n) {
    const int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= n) return;
    int op = 0;
    PUT(rsqrtf(as[i]));
}
