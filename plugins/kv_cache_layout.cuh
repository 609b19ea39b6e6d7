// What the kernels around the K/V ring share. Macros: BITS (4, 8) of a code, HEAD_DIM (64, 128), KEYS rows of a tile.
#pragma once
#include "numbers.cuh"

#ifndef KEYS
#define KEYS 64
#endif

constexpr int ROW_BYTES = HEAD_DIM * BITS / 8;  // of a row of codes
constexpr float NORM = HEAD_DIM == 64 ? 0.125f : 0.08838834764831845f;  // 1 / sqrt(HEAD_DIM)
constexpr uint32 ALL = 0xffffffffu;

__device__ __forceinline__ bool finite(float x) { return fabsf(x) <= 3.402823466e38f; }
