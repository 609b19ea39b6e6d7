// From numbers to codes, on every GPU: what the kernels of w4a4_quantize.cu and w4a4_quantize_wgmma.cu share.
//
// Four lanes hold a group of a token: lane t of them the numbers 16t .. 16t+15.
#pragma once
#include "w4a4_layout.cuh"

constexpr int OWN = 16;  // numbers of a lane in a row of a group

struct Words8 {  // 16 float16
    uint32 word[8];
};

// Rows of a group in shared memory. Pieces of odd rows change places in pairs, against bank conflicts.
__device__ __forceinline__ int place_in_group(int row, int piece) { return row * (GROUP * 2) + ((piece ^ (row & 1)) << 4); }

__device__ __forceinline__ Words8 read_row(uint32 group, int row, int t) {
    Words8 found;
#pragma unroll
    for (int i = 0; i < 2; ++i)
        asm volatile("ld.shared.v4.u32 {%0,%1,%2,%3}, [%4];"
                     : "=r"(found.word[4 * i]), "=r"(found.word[4 * i + 1]), "=r"(found.word[4 * i + 2]), "=r"(found.word[4 * i + 3])
                     : "r"(group + place_in_group(row, 2 * t + i)));
    return found;
}

// The butterflies of the reference in its order, without the division by 8 after them. Every sum is rounded; none is fused.
__device__ __forceinline__ void rotate(float (&v)[OWN], int t) {
#pragma unroll
    for (int stride = 1; stride < OWN; stride *= 2) {
#pragma unroll
        for (int i = 0; i < OWN; ++i) {
            if ((i & stride) == 0) {
                float first = v[i], second = v[i + stride];
                v[i] = __fadd_rn(first, second);
                v[i + stride] = __fadd_rn(first, -second);
            }
        }
    }
#pragma unroll
    for (int lane = 1; lane <= 2; lane *= 2) {  // strides 16 and 32
        float sign = (t & lane) ? -1.0f : 1.0f;
#pragma unroll
        for (int i = 0; i < OWN; ++i) v[i] = __fmaf_rn(v[i], sign, __shfl_xor_sync(~0u, v[i], lane));
    }
}

// Of the four lanes of a row: the number with the largest magnitude, the negative one of two; NaN above all.
__device__ __forceinline__ float extreme_of(const float (&v)[OWN]) {
    uint32 above = 0;  // as integers negative numbers are above all others, in the order of their magnitudes
    int highest = 0;
#pragma unroll
    for (int i = 0; i < OWN; ++i) above = max(above, __float_as_uint(v[i])), highest = max(highest, __float_as_int(v[i]));
    uint32 largest = max(__funnelshift_l(above, above, 1), uint32(highest) << 1);  // magnitudes, with the sign below
    largest = max(largest, __shfl_xor_sync(~0u, largest, 1));
    largest = max(largest, __shfl_xor_sync(~0u, largest, 2));
    return __uint_as_float(__funnelshift_r(largest, largest, 1));
}

#if FP8
// To nearest, ties to even; the first in the low byte.
__device__ __forceinline__ uint32 floats_to_fp8(float a, float b, float c, float d) {
    uint16 low, high;
    asm("cvt.rn.satfinite.e4m3x2.f32 %0, %1, %2;" : "=h"(low) : "f"(b), "f"(a));
    asm("cvt.rn.satfinite.e4m3x2.f32 %0, %1, %2;" : "=h"(high) : "f"(d), "f"(c));
    return pack_halves(low, high);
}
#endif

// 1 / x, correctly rounded.
__device__ __forceinline__ float inverse_of(float x) {
#if WGMMA
    // What the general function does, but for numbers so large or small that float32 ends: no extreme is.
    float inverse;
    asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(inverse) : "f"(x));
    return __fmaf_rn(inverse, __fmaf_rn(-x, inverse, 1.0f), inverse);
#else
    return __frcp_rn(x);
#endif
}

// A lane's part of a group as codes, a byte each, and the group's scale. All lanes must call.
//
// As FP8 codes are 1/512 of the integers, and numbers of FP8 up to 1/32 are 1/512 apart: their rounding is the one to
// integers.
struct Codes {
    uint32 even[2], odd[2];  // of even places, and of odd ones
    half_bits scale;

    // `rotated`: the numbers are yet to be divided by 8, which changes no code, as it is exact.
    __device__ __forceinline__ Codes(const float (&v)[OWN], bool rotated) {
        float extreme = extreme_of(v);
        bool finite = fabsf(extreme) < infinity(), divides = extreme != 0.0f && finite;
        float inverse = inverse_of(divides ? extreme : 1.0f);
        scale = finite ? float_to_half(__fmul_rn(extreme, rotated ? -0.015625f : -0.125f)) : half_bits(0x7fff);
        float last = finite ? 7.0f : 0.0f;  // the code 0 of all that is not finite, as of NaN the minimum is the other number
        constexpr float STEP_SIZE = FP8 ? 1.0f / 512.0f : 1.0f;
        inverse *= divides ? -8.0f * STEP_SIZE : 0.0f;  // powers of two change no digit of the quotient
#if FP8
        last *= STEP_SIZE;
        float q[OWN];
#pragma unroll
        for (int i = 0; i < OWN; ++i) q[i] = fminf(__fmul_rn(v[i], inverse), last);
#pragma unroll
        for (int i = 0; i < 2; ++i) {
            const float* p = q + 8 * i;
            even[i] = floats_to_fp8(p[0], p[2], p[4], p[6]);
            odd[i] = floats_to_fp8(p[1], p[3], p[5], p[7]);
        }
#else
        constexpr float ROUNDING = 12582912.0f;  // 1.5 * 2^23: added to a small number, it leaves its nearest integer
        last += ROUNDING;
        uint32 q[OWN];
#pragma unroll
        for (int i = 0; i < OWN; ++i) q[i] = __float_as_uint(fminf(__fadd_rn(__fmul_rn(v[i], inverse), ROUNDING), last));
#pragma unroll
        for (int i = 0; i < 2; ++i) {
            const uint32* p = q + 8 * i;
            even[i] = __byte_perm(__byte_perm(p[0], p[2], 0x0040), __byte_perm(p[4], p[6], 0x0040), 0x5410);
            odd[i] = __byte_perm(__byte_perm(p[1], p[3], 0x0040), __byte_perm(p[5], p[7], 0x0040), 0x5410);
        }
#endif
    }

    // To the lane's own part of the row; all lanes must call.
    __device__ __forceinline__ void store(uint8* target, int t, bool valid) const {
#if INT8
        bool is_odd = t & 1;  // an even lane stores the even places of both, an odd lane the odd ones: 16 bytes each
        uint32 first_word = __shfl_xor_sync(~0u, is_odd ? even[0] : odd[0], 1);
        uint32 second_word = __shfl_xor_sync(~0u, is_odd ? even[1] : odd[1], 1);
        uint32 x = is_odd ? first_word : even[0], y = is_odd ? second_word : even[1];
        uint32 z = is_odd ? odd[0] : first_word, w = is_odd ? odd[1] : second_word;
        asm volatile("{\n.reg .pred p;\nsetp.ne.s32 p, %5, 0;\n@p st.global.v4.u32 [%0], {%1,%2,%3,%4};\n}"
                     ::"l"(target), "r"(x), "r"(y), "r"(z), "r"(w), "r"(int(valid)) : "memory");
#else
        uint32 x = (even[0] & 0x0f0f0f0fu) | ((odd[0] << 4) & 0xf0f0f0f0u);
        uint32 y = (even[1] & 0x0f0f0f0fu) | ((odd[1] << 4) & 0xf0f0f0f0u);
        if (valid) asm volatile("st.global.v2.u32 [%0], {%1,%2};" ::"l"(target), "r"(x), "r"(y) : "memory");
#endif
    }
};
