// What both kernels of rtgen::AttentionConv share: tiles in shared memory, the softmax's running maximum, and the
// projection after the attention. Macros: CHANNELS is the width of a query, a multiple of 16; SPLIT (1 where it is not
// given) into how many equal parts, in blocks of 64, the channels of values are divided among blocks of a cluster.
//
// A tile of rows lies in shared memory as blocks of 64 channels: [block][row][128 bytes]. Of the eight 16-byte chunks
// of a row, chunk c stands at c ^ (row % 8), which is the 128-byte swizzle of wgmma, and keeps ldmatrix free of bank
// conflicts.
#pragma once
#include "mma.cuh"

#ifndef SPLIT
#define SPLIT 1
#endif

constexpr int BLOCKS = (CHANNELS + 64 * SPLIT - 1) / (64 * SPLIT) * SPLIT;  // of 64 channels, padded with zeros
constexpr int PITCH = 64 * BLOCKS;                                        // channels of a row in shared memory
constexpr int DEPTH_STEPS = (CHANNELS + 31) / 32;  // of 32 channels, in products over channels

// A row's maximum is raised only when it lags behind by more than this, in powers of two: numerators then stay below
// 256, which float16 holds, and the sums of the output are rarely scaled anew.
constexpr float GREATEST_LAG = 8.0f;

template <int ROWS>
__device__ __forceinline__ uint32 tile_offset(int row, int chunk) {  // in bytes
    return uint32((chunk >> 3) * (ROWS * 128) + row * 128 + (((chunk ^ row) & 7) << 4));
}

// Rows first .. first + ROWS - 1 of source [rows, stride] into a tile of TILE_BLOCKS blocks; zeros past the last row and
// past `channels`.
template <int ROWS, int THREADS, int TILE_BLOCKS = BLOCKS>
__device__ __forceinline__ void copy_tile(uint32 tile, const half_bits* source, int first, int rows, int stride,
                                          int channels, int thread) {
    constexpr int GROUPS = THREADS / 8;  // eight threads copy 128 neighbouring bytes
    constexpr int ROW_STEP = GROUPS < ROWS ? GROUPS : ROWS;
    constexpr int BLOCK_STEP = GROUPS / ROW_STEP;
    int chunk = thread % 8, row = thread / 8 % ROW_STEP, block = thread / 8 / ROW_STEP;
    uint32 target = tile + tile_offset<ROWS>(row, block * 8 + chunk);
    const half_bits* from = source + int64(first + row) * stride + block * 64 + chunk * 8;
#pragma unroll
    for (int r = 0; r < ROWS; r += ROW_STEP) {
        bool inside = first + row + r < rows;
#pragma unroll
        for (int b = 0; b < TILE_BLOCKS; b += BLOCK_STEP) {
            if (TILE_BLOCKS % BLOCK_STEP && block + b >= TILE_BLOCKS) continue;
            bool valid = inside && (block + b) * 64 + chunk * 8 < channels;
            copy_16(target + b * (ROWS * 128) + r * 128, valid ? from + int64(r) * stride + b * 64 : source, valid);
        }
    }
}

// Where the projection reads and writes: out [streams, out_channels, frames, tokens], and so the residual.
struct Projection {
    const half_bits* weight;  // [out_channels, CHANNELS]
    const half_bits* bias;    // [out_channels]
    const half_bits* residual;
    half_bits* output;
    int out_channels;
    int tokens;  // of a frame
    int64 start;         // of this frame in the first channel
    int64 channel_step;  // frames * tokens

    // For the frame that is the block's, of blockIdx.y.
    __device__ __forceinline__ Projection(const half_bits* weight, const half_bits* bias, const half_bits* residual,
                                          half_bits* output, int out_channels, int tokens, int frames)
        : weight(weight), bias(bias), residual(residual), output(output), out_channels(out_channels), tokens(tokens) {
        channel_step = int64(frames) * tokens;
        start = int64(blockIdx.y / frames) * out_channels * channel_step + int64(blockIdx.y % frames) * tokens;
    }
};

struct WeightPiece {  // 8 neighbouring channels of the rows g and g + 8 of a 16-row tile
    uint32 upper[4];
    uint32 lower[4];
};

__device__ __forceinline__ void load_16(uint32 (&r)[4], const half_bits* source, bool valid) {
    asm volatile("{\n.reg .pred p;\nsetp.ne.s32 p, %5, 0;\nmov.b32 %0, 0;\nmov.b32 %1, 0;\nmov.b32 %2, 0;\nmov.b32 %3, 0;\n"
                 "@p ld.global.nc.v4.b32 {%0,%1,%2,%3}, [%4];\n}\n"
                 : "=&r"(r[0]), "=&r"(r[1]), "=&r"(r[2]), "=&r"(r[3]) : "l"(source), "r"(int(valid)));
}

template <int M_TILES>
__device__ __forceinline__ void load_weight(WeightPiece (&piece)[M_TILES], const Projection& p, int first, int step,
                                            int lane) {
    int channel = step * 32 + lane % 4 * 8;
#pragma unroll
    for (int m = 0; m < M_TILES; m++) {
        int row = first + m * 16 + lane / 4;
        const half_bits* source = p.weight + int64(row) * CHANNELS + channel;
        load_16(piece[m].upper, source, row < p.out_channels && channel < CHANNELS);
        load_16(piece[m].lower, source + 8 * CHANNELS, row + 8 < p.out_channels && channel < CHANNELS);
    }
}

__device__ __forceinline__ void prefetch(const half_bits* place) {
    asm volatile("prefetch.global.L2 [%0];" ::"l"(place));
}

// The weight, divided among all blocks, and this block's residual on their way to the second-level cache: at the end all
// blocks ask for them at the same time.
template <int ROWS>
__device__ __forceinline__ void prefetch_operands(const Projection& p, int first_token, int thread, int threads) {
    int block = blockIdx.y * gridDim.x + blockIdx.x;
    for (int64 at = (int64(block) * threads + thread) * 64; at < int64(p.out_channels) * CHANNELS;
         at += int64(gridDim.x) * gridDim.y * threads * 64)
        prefetch(p.weight + at);
    int last_token = min(first_token + ROWS, p.tokens) - 1;
    if (last_token < first_token) return;
    for (int channel = thread; channel < p.out_channels; channel += threads) {
        const half_bits* row = p.residual + p.start + channel * p.channel_step;
        prefetch(row + first_token);
        prefetch(row + last_token);
    }
}

__device__ __forceinline__ half2_bits load_2(const half_bits* source, bool valid) {  // 4-byte aligned
    half2_bits pair;
    asm volatile("{\n.reg .pred p;\nsetp.ne.s32 p, %2, 0;\nmov.b32 %0, 0;\n@p ld.global.nc.b32 %0, [%1];\n}\n"
                 : "=&r"(pair) : "l"(source), "r"(int(valid)));
    return pair;
}

__device__ __forceinline__ half_bits load_1(const half_bits* source, bool valid) {
    half_bits number;
    asm volatile("{\n.reg .pred p;\nsetp.ne.s32 p, %2, 0;\nmov.b16 %0, 0;\n@p ld.global.nc.b16 %0, [%1];\n}\n"
                 : "=&h"(number) : "l"(source), "r"(int(valid)));
    return number;
}

// What a thread holds of one output channel for ROWS tokens: pairs of tokens.
struct Channel {
    int64 place;  // of its first pair
    int count;    // tokens from there on; 0 where there is no such channel

    __device__ __forceinline__ Channel(const Projection& p, int number, int first_token, int lane) {
        place = p.start + number * p.channel_step + first_token + lane % 4 * 2;
        count = number < p.out_channels ? p.tokens - first_token - lane % 4 * 2 : 0;
    }
};

// Bias and residual as the first summands: all of them are on their way at once, while other things are done. With an
// EVEN number of tokens pairs are aligned, and whole or not there. No branches, which would wait for one after another.
template <int ROWS, int M_TILES, bool EVEN>
__device__ __forceinline__ void start_sums(float (&sums)[M_TILES][ROWS / 8][4], const Projection& p, int first,
                                           int first_token, int lane) {
#pragma unroll
    for (int i = 0; i < M_TILES * 2; i++) {
        int number = first + i * 8 + lane / 4;
        Channel channel(p, number, first_token, lane);
        float bias = half_to_float(load_1(p.bias + number, number < p.out_channels));
#pragma unroll
        for (int n = 0; n < ROWS / 8; n++) {
            const half_bits* source = p.residual + channel.place + n * 8;
            half2_bits pair = EVEN ? load_2(source, channel.count > n * 8)
                                   : pack_halves(load_1(source, channel.count > n * 8),
                                                 load_1(source + 1, channel.count > n * 8 + 1));
            sums[i / 2][n][i % 2 * 2] = bias + low_float(pair);
            sums[i / 2][n][i % 2 * 2 + 1] = bias + high_float(pair);
        }
    }
}

template <int ROWS, int M_TILES, bool EVEN>
__device__ __forceinline__ void write_sums(const float (&sums)[M_TILES][ROWS / 8][4], const Projection& p, int first,
                                           int first_token, int lane) {
#pragma unroll
    for (int i = 0; i < M_TILES * 2; i++) {
        Channel channel(p, first + i * 8 + lane / 4, first_token, lane);
#pragma unroll
        for (int n = 0; n < ROWS / 8; n++) {
            half2_bits pair = floats_to_half2(sums[i / 2][n][i % 2 * 2], sums[i / 2][n][i % 2 * 2 + 1]);
            half_bits* target = p.output + channel.place + n * 8;
            if (EVEN) {
                if (channel.count > n * 8) *reinterpret_cast<half2_bits*>(target) = pair;
            } else {
                if (channel.count > n * 8) target[0] = half_bits(pair);
                if (channel.count > n * 8 + 1) target[1] = half_bits(pair >> 16);
            }
        }
    }
}

// The place in an attention tile [ROWS, PITCH] of what a thread holds of one row after a product: of 32 channels, its
// pairs 2t, 2t + 1 of each eight. Within 32 channels the pairs are stored in another order, pair 4a + b at 4b + a: so
// one 16-byte load of the weight, of 8 neighbouring channels, fits the fragments that ldmatrix takes from the tile.
template <int ROWS>
__device__ __forceinline__ uint32 attention_offset(int row, int step, int lane) {
    return tile_offset<ROWS>(row, step * 4 + lane % 4);
}

__device__ __forceinline__ void store_16(uint32 target, const uint32 (&r)[4]) {
    asm volatile("st.shared.v4.u32 [%0], {%1,%2,%3,%4};" ::"r"(target), "r"(r[0]), "r"(r[1]), "r"(r[2]), "r"(r[3]) : "memory");
}

// output = weight · attentionᵀ + bias + residual for ROWS tokens, by WARPS warps. The products come out with channels
// as rows, which is the layout of the output. The weight goes from the second-level cache to registers: each number is
// read once. `await_tile` is called once by every warp, before it reads the tile.
template <int ROWS, int WARPS, int M_TILES, class Await>
__device__ __forceinline__ void project(uint32 tile, const Projection& p, int first_token, int warp, int lane,
                                        Await await_tile) {
    int first = warp * M_TILES * 16;
    bool even = p.tokens % 2 == 0;
    do {
        float sums[M_TILES][ROWS / 8][4];
        WeightPiece pieces[2][M_TILES];
        load_weight<M_TILES>(pieces[0], p, first, 0, lane);
        if (even) start_sums<ROWS, M_TILES, true>(sums, p, first, first_token, lane);
        else start_sums<ROWS, M_TILES, false>(sums, p, first, first_token, lane);
        if (first == warp * M_TILES * 16) await_tile();
#pragma unroll 2
        for (int step = 0; step < DEPTH_STEPS; step++) {
            WeightPiece(&now)[M_TILES] = pieces[step & 1];
            if (step + 1 < DEPTH_STEPS) load_weight<M_TILES>(pieces[~step & 1], p, first, step + 1, lane);
#pragma unroll
            for (int n = 0; n < ROWS / 8; n++) {
                uint32 b[4];
                load_matrices(b, tile + tile_offset<ROWS>(n * 8 + lane % 8, step * 4 + lane / 8));
#pragma unroll
                for (int m = 0; m < M_TILES; m++) {
                    const uint32 a0[4] = {now[m].upper[0], now[m].lower[0], now[m].upper[1], now[m].lower[1]};
                    const uint32 a1[4] = {now[m].upper[2], now[m].lower[2], now[m].upper[3], now[m].lower[3]};
                    mma_f16(sums[m][n], a0, b[0], b[1]);
                    mma_f16(sums[m][n], a1, b[2], b[3]);
                }
            }
        }
        if (even) write_sums<ROWS, M_TILES, true>(sums, p, first, first_token, lane);
        else write_sums<ROWS, M_TILES, false>(sums, p, first, first_token, lane);
        first += WARPS * M_TILES * 16;
    } while (first < p.out_channels);
}
