// What the kernels of rtgen::W4A4Linear share: how the first leaves its results in memory for the second.
//
// INT8=0: codes two a byte, for INT4 tensor cores. INT8=1: a byte each. WGMMA=1: a byte each for Hopper's wgmma, as FP8
// where FP8=1; there the weights are taken apart ahead too.
//
// Operands lie in rows of one step (two groups) of a token or feature, in pieces of 16 bytes that are permuted as they are
// to lie in shared memory: copies are of consecutive bytes, and no bank is met twice. With WGMMA all rows of a step follow
// each other; else those of a panel of 48 tokens do, step after step.
#pragma once
#include "mma.cuh"

#ifndef INT8
#define INT8 1
#endif
#ifndef WGMMA
#define WGMMA 0
#endif
#ifndef FP8
#define FP8 0
#endif

constexpr int GROUP = 64;
constexpr int STEP = 2;    // groups that are copied at once
constexpr int RANKS = 32;  // of the branch that are copied at once
constexpr int PANEL = 48;  // tokens
constexpr int FEATURE_BLOCK = WGMMA ? 160 : 192;  // features are padded to a multiple
constexpr int CODE_ROW = INT8 ? 128 : 64;         // bytes of a token in a step
constexpr int WEIGHT_ROW = WGMMA ? 128 : 64;      // of a feature
constexpr int BRANCH_ROW = 64;                    // of 32 ranks
constexpr int SCALE_ROW = 32;                     // WGMMA: of a feature's scales in a step, both eight times over
constexpr int CODE_PANEL = PANEL * CODE_ROW, HIDDEN_PANEL = PANEL * BRANCH_ROW;

// Of the sums of products. INT8 tensor cores multiply weights of 16 times the codes; as FP8, codes are magnitudes of
// 1/512 with a sign: subnormal numbers and the next one, whose products all have one exponent.
constexpr float UNIT = FP8 ? 262144.0f : INT8 ? 0.0625f : 1.0f;

// Places of 16-byte pieces: of rows of 128 bytes, and of rows of 64.
__device__ __forceinline__ int place_128(int row, int piece) { return row * 128 + ((piece ^ (row & 7)) << 4); }
__device__ __forceinline__ int place_64(int row, int piece) { return row * 64 + ((piece ^ ((row >> 1) & 3)) << 4); }

// WGMMA: where a feature's row is, of its weights, scales and low_rank_up. Of each eight rows, lane t of four gets the sums of
// rows 2t and 2t + 1 (wgmma.cuh): in this order, those it gets of 32 rows are eight neighbouring features.
__device__ __forceinline__ int feature_row(int feature) {
    return (feature & ~30) | ((feature & 6) << 2) | ((feature & 24) >> 2);
}

// Four codes, the low halves of the bytes, as FP8 (e4m3).
__device__ __forceinline__ uint32 codes_to_fp8(uint32 codes) {
    uint32 negative = (codes >> 3) & 0x01010101u;
    return ((codes & 0x0f0f0f0fu) ^ (negative * 0x8f)) + negative;
}
