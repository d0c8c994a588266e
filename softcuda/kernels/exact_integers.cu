// Integer arithmetic, bit by bit: out[op][i] from a[i], b[i], c[i]. The host's tables name the operations in this
// order.
#include <stdint.h>

#define PUT(value) out[size_t(op++) * n + i] = (value)

// Shifts by more than the width are PTX's, not C++'s.
#define ASM_2(T, constraint, instruction)                                                                              \
    [](T a, uint32_t b) {                                                                                              \
        T d;                                                                                                           \
        asm(instruction " %0, %1, %2;" : "=" constraint(d) : constraint(a), "r"(b));                                   \
        return d;                                                                                                      \
    }

extern "C" __global__ void integers_32(const uint32_t *as, const uint32_t *bs, const uint32_t *cs, uint32_t *out,
                                       int n) {
    const int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= n) return;
    const uint32_t a = as[i], b = bs[i], c = cs[i];
    const int32_t sa = a, sb = b;
    int op = 0;
    PUT(a + b);
    PUT(a - b);
    PUT(a * b);
    PUT(a * b + c);
    PUT(__umulhi(a, b));
    PUT(__mulhi(sa, sb));
    PUT(a / (b | 1));
    PUT(a % (b | 1));
    PUT(sa / (sb == -1 || sb == 0 ? 7 : sb)); // INT_MIN / -1 and x / 0 have no defined value
    PUT(sa % (sb == -1 || sb == 0 ? 7 : sb));
    PUT(min(a, b));
    PUT(max(a, b));
    PUT(min(sa, sb));
    PUT(max(sa, sb));
    PUT(abs(sa));
    PUT(-a);
    PUT(a & b);
    PUT(a | b);
    PUT(a ^ b);
    PUT(~a);
    PUT(ASM_2(uint32_t, "r", "shl.b32")(a, b));
    PUT(ASM_2(uint32_t, "r", "shr.u32")(a, b));
    PUT(ASM_2(uint32_t, "r", "shr.s32")(a, b));
    PUT(__clz(a));
    PUT(__popc(a));
    PUT(__brev(a));
    PUT(__ffs(a));
    uint32_t d;
    asm("prmt.b32 %0, %1, %2, %3;" : "=r"(d) : "r"(a), "r"(b), "r"(c));
    PUT(d);
    PUT(__funnelshift_l(a, b, c));
    PUT(__funnelshift_r(a, b, c));
    asm("bfe.u32 %0, %1, %2, %3;" : "=r"(d) : "r"(a), "r"(b), "r"(c));
    PUT(d);
    asm("bfe.s32 %0, %1, %2, %3;" : "=r"(d) : "r"(a), "r"(b), "r"(c));
    PUT(d);
    asm("bfi.b32 %0, %1, %2, %3, 13;" : "=r"(d) : "r"(a), "r"(b), "r"(c));
    PUT(d);
    PUT((a < b) | (a <= b) << 1 | (sa < sb) << 2 | (sa <= sb) << 3 | (a == b) << 4 | (sa > sb && a > c) << 5);
    PUT(sa > 0 ? b : c);
    PUT(uint8_t(a) + int8_t(b) + uint16_t(b) * int16_t(a)); // narrow conversions
}

extern "C" __global__ void integers_64(const uint64_t *as, const uint64_t *bs, const uint64_t *cs, uint64_t *out,
                                       int n) {
    const int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= n) return;
    const uint64_t a = as[i], b = bs[i], c = cs[i];
    const int64_t sa = a, sb = b;
    int op = 0;
    PUT(a + b);
    PUT(a - b);
    PUT(a * b);
    PUT(a * b + c);
    PUT(__umul64hi(a, b));
    PUT(__mul64hi(sa, sb));
    PUT(a / (b | 1));
    PUT(a % (b | 1));
    PUT(sa / (sb == -1 || sb == 0 ? 7 : sb));
    PUT(sa % (sb == -1 || sb == 0 ? 7 : sb));
    PUT(min(a, b));
    PUT(max(sa, sb));
    PUT(a & ~b | c);
    PUT(a ^ b);
    PUT(ASM_2(uint64_t, "l", "shl.b64")(a, b));
    PUT(ASM_2(uint64_t, "l", "shr.u64")(a, b));
    PUT(ASM_2(uint64_t, "l", "shr.s64")(a, b));
    PUT(__clzll(a));
    PUT(__popcll(a));
    PUT(__brevll(a));
    PUT(uint64_t(uint32_t(a)) * uint32_t(b));            // mul.wide
    PUT(uint64_t(int64_t(int32_t(a)) * int32_t(b)) + c); // mad.wide
    PUT((a < b) | (sa < sb) << 1 | (sa >= sb) << 2 | (a == b) << 3);
    PUT(sa > 0 ? b : c);
}
