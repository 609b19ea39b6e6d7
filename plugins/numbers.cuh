// Numbers, packing and warp helpers without the CUDA toolkit's headers, so that NVRTC alone compiles the kernels.
#pragma once

typedef signed char int8;
typedef unsigned char uint8;
typedef unsigned short uint16;
typedef unsigned int uint32;
typedef unsigned long long uint64;
typedef long long int64;

typedef uint16 half_bits;   // a float16
typedef uint32 half2_bits;  // two float16, the first in the low half

__device__ __forceinline__ float half_to_float(half_bits h) {
    float f;
    asm("cvt.f32.f16 %0, %1;" : "=f"(f) : "h"(h));
    return f;
}

__device__ __forceinline__ half_bits float_to_half(float f) {  // to nearest, ties to even
    half_bits h;
    asm("cvt.rn.f16.f32 %0, %1;" : "=h"(h) : "f"(f));
    return h;
}

__device__ __forceinline__ half2_bits pack_halves(half_bits low, half_bits high) {
    return uint32(low) | (uint32(high) << 16);
}

__device__ __forceinline__ half2_bits floats_to_half2(float low, float high) {
#if __CUDA_ARCH__ >= 800
    half2_bits h;
    asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(h) : "f"(high), "f"(low));
    return h;
#else
    return pack_halves(float_to_half(low), float_to_half(high));
#endif
}

__device__ __forceinline__ float low_float(half2_bits h) { return half_to_float(half_bits(h & 0xffffu)); }
__device__ __forceinline__ float high_float(half2_bits h) { return half_to_float(half_bits(h >> 16)); }

__device__ __forceinline__ half2_bits half2_sub(half2_bits a, half2_bits b) {
    half2_bits d;
    asm("sub.rn.f16x2 %0, %1, %2;" : "=r"(d) : "r"(a), "r"(b));
    return d;
}

__device__ __forceinline__ half2_bits half2_mul(half2_bits a, half2_bits b) {
    half2_bits d;
    asm("mul.rn.f16x2 %0, %1, %2;" : "=r"(d) : "r"(a), "r"(b));
    return d;
}

__device__ __forceinline__ half2_bits half2_fma(half2_bits a, half2_bits b, half2_bits c) {
    half2_bits d;
    asm("fma.rn.f16x2 %0, %1, %2, %3;" : "=r"(d) : "r"(a), "r"(b), "r"(c));
    return d;
}

__device__ __forceinline__ uint32 and_xor(uint32 a, uint32 b, uint32 c) {  // (a & b) ^ c in one instruction
    uint32 d;
    asm("lop3.b32 %0, %1, %2, %3, 0x6a;" : "=r"(d) : "r"(a), "r"(b), "r"(c));
    return d;
}

__device__ __forceinline__ float exp2_approx(float x) {  // 2 ulp; exp2(-inf) is 0
    float y;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
}

__device__ __forceinline__ uint32 shared_address(const void* pointer) {
    return uint32(__cvta_generic_to_shared(pointer));
}

__device__ __forceinline__ float infinity() { return __int_as_float(0x7f800000); }
__device__ __forceinline__ int ceil_div(int a, int b) { return (a + b - 1) / b; }
