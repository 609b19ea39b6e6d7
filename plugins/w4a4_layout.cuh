// What the two kernels of rtgen::W4A4Linear share: how the first leaves its results in memory for the second.
//
// Codes and the branch's thin product lie in panels of 48 tokens, in pieces of 16 bytes that are permuted as they are to
// lie in shared memory: copies are of consecutive bytes, and ldmatrix meets no bank twice.
#pragma once
#include "mma.cuh"

#ifndef INT8
#define INT8 1
#endif

constexpr int GROUP = 64;
constexpr int STEP = 2;    // groups that are copied at once
constexpr int RANKS = 32;  // of the branch that are copied at once
constexpr int PANEL = 48;  // tokens
constexpr int CODE_ROW = INT8 ? 128 : 64;  // bytes of a token in a step
constexpr int WEIGHT_ROW = 64;             // of a feature; also of 32 ranks
constexpr int CODE_PANEL = PANEL * CODE_ROW, HIDDEN_PANEL = PANEL * WEIGHT_ROW;
constexpr int FEATURE_BLOCK = 192;  // features are padded to a multiple
constexpr float UNIT = INT8 ? 0.0625f : 1.0f;  // of the integer sums: INT8 multiplies weights of 16 times the codes

// Places of 16-byte pieces: of rows of 128 bytes, and of rows of 64.
__device__ __forceinline__ int place_128(int row, int piece) { return row * 128 + ((piece ^ (row & 7)) << 4); }
__device__ __forceinline__ int place_64(int row, int piece) { return row * 64 + ((piece ^ ((row >> 1) & 3)) << 4); }
