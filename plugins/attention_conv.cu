// rtgen::AttentionConv on mma.sync: softmax(Q Kᵀ · scale) V, a 1x1 convolution, bias and residual, Turing to Blackwell.
//
// A block has QUERIES queries: two warps for each 16 of them. Of every tile of keys each of the two takes half of the
// scores, and writes the numerators of the softmax to shared memory; of the sums over values each takes half of the
// channels. Tiles of keys and values take turns in one ring of STAGES tiles.
// Macros: CHANNELS, QUERIES (of a block), KEYS (of a tile), STAGES, OUT_TILES (16-row tiles of the weight that a warp
// takes at once).
#include "attention_conv.cuh"

constexpr int ROWS = QUERIES;
constexpr int COLUMN_WARPS = 2;
constexpr int WARPS = ROWS / 16 * COLUMN_WARPS;
constexpr int THREADS = WARPS * 32;
constexpr int KEY_TILES = KEYS / COLUMN_WARPS / 8;  // 8-key tiles of scores a warp
constexpr int COLUMN_TILES = PITCH / COLUMN_WARPS / 8;  // 8-channel tiles of sums a warp
constexpr int TILE_BYTES = KEYS * PITCH * 2;
constexpr int QUERY_BYTES = ROWS * PITCH * 2;
constexpr int SHARE_BYTES = ROWS * KEYS * 2;

__device__ __forceinline__ uint32 share_offset(int row, int chunk) {  // in the tile of numerators, [ROWS, KEYS]
    constexpr int CHUNKS = KEYS / 8;  // a row; swizzled so that ldmatrix has no bank conflicts
    return uint32(row * KEYS * 2 + ((chunk ^ (row / (8 / CHUNKS) % CHUNKS)) << 4));
}

struct Ring {
    uint32 base;
    const half_bits* keys;  // values are CHANNELS further
    int tokens;
    int tiles;  // of keys and values together

    __device__ __forceinline__ void load(int tile) const {
        if (tile < tiles)
            copy_tile<KEYS, THREADS>(base + tile % STAGES * TILE_BYTES, keys + tile % 2 * CHANNELS, tile / 2 * KEYS,
                                     tokens, 3 * CHANNELS, CHANNELS, threadIdx.x);
        commit_copies();
    }

    // Waits until a tile is there, and until all threads are done with the one before, whose place is filled anew.
    __device__ __forceinline__ uint32 take(int tile) const {
        if (STAGES == 1) {
            __syncthreads();
            load(tile);
            wait_copies<0>();
            __syncthreads();
        } else {
            wait_copies<(STAGES > 1 ? STAGES - 2 : 0)>();
            __syncthreads();
            load(tile + STAGES - 1);
        }
        return base + tile % STAGES * TILE_BYTES;
    }
};

// Scores of 16 queries and half of a tile's keys.
__device__ __forceinline__ void multiply_keys(float (&scores)[KEY_TILES][4], uint32 queries, uint32 keys, int row_warp,
                                              int column_warp, int lane) {
    int query = row_warp * 16 + lane % 16, key = column_warp * (KEYS / COLUMN_WARPS) + lane % 8;
#pragma unroll 4
    for (int step = 0; step < DEPTH_STEPS; step++) {
        uint32 a0[4], a1[4], b[4];
        load_matrices(a0, queries + tile_offset<ROWS>(query, step * 4 + lane / 16));
        load_matrices(a1, queries + tile_offset<ROWS>(query, step * 4 + 2 + lane / 16));
#pragma unroll
        for (int n = 0; n < KEY_TILES; n++) {
            load_matrices(b, keys + tile_offset<KEYS>(key + n * 8, step * 4 + lane / 8));
            mma_f16(scores[n], a0, b[0], b[1]);
            mma_f16(scores[n], a1, b[2], b[3]);
        }
    }
}

// Sums over the tile's values for 16 queries and half of the channels.
__device__ __forceinline__ void add_values(float (&sums)[COLUMN_TILES][4], uint32 shares, uint32 values, int row_warp,
                                           int column_warp, int lane) {
#pragma unroll
    for (int step = 0; step < KEYS / 16; step++) {
        uint32 a[4], b[4];
        load_matrices(a, shares + share_offset(row_warp * 16 + lane % 16, step * 2 + lane / 16));
#pragma unroll
        for (int n = 0; n < COLUMN_TILES; n += 2) {
            int chunk = column_warp * COLUMN_TILES + n + lane / 16;
            load_matrices_transposed(b, values + tile_offset<KEYS>(step * 16 + lane % 16, chunk));
            mma_f16(sums[n], a, b[0], b[1]);
            mma_f16(sums[n + 1], a, b[2], b[3]);
        }
    }
}

// Rows g and g + 8 of a warp's 16 queries.
struct Rows {
    float maximum[2];  // in powers of two
    float total[2];    // of the numerators that this thread made
    int row_warp;
    int column_warp;
    int lane;

    __device__ __forceinline__ int row(int half) const { return row_warp * 16 + half * 8 + lane / 4; }

    // The greatest score of each row among both column warps, as a power of two; `board` holds ROWS numbers of each.
    __device__ __forceinline__ void greatest(float (&top)[2], const float (&scores)[KEY_TILES][4], float scale,
                                             float* board) const {
#pragma unroll
        for (int half = 0; half < 2; half++) {
            float most = -infinity();
#pragma unroll
            for (int n = 0; n < KEY_TILES; n++) most = fmaxf(most, fmaxf(scores[n][half * 2], scores[n][half * 2 + 1]));
            most = fmaxf(most, __shfl_xor_sync(~0u, most, 1));
            most = fmaxf(most, __shfl_xor_sync(~0u, most, 2));
            if (lane % 4 == 0) board[column_warp * ROWS + row(half)] = most;
            top[half] = most;
        }
        asm volatile("bar.sync %0, %1;" ::"r"(row_warp + 1), "n"(32 * COLUMN_WARPS) : "memory");
#pragma unroll
        for (int half = 0; half < 2; half++)
            top[half] = scale * fmaxf(top[half], board[(column_warp ^ 1) * ROWS + row(half)]);
    }

    __device__ __forceinline__ void raise(const float (&top)[2], float (&sums)[COLUMN_TILES][4]) {
        bool lags = top[0] > maximum[0] + GREATEST_LAG || top[1] > maximum[1] + GREATEST_LAG;
        if (!__any_sync(~0u, lags)) return;
#pragma unroll
        for (int half = 0; half < 2; half++) {
            float raised = fmaxf(maximum[half], top[half]);
            float factor = exp2_approx(maximum[half] - raised);
            maximum[half] = raised;
            total[half] *= factor;
#pragma unroll
            for (int n = 0; n < COLUMN_TILES; n++) {
                sums[n][half * 2] *= factor;
                sums[n][half * 2 + 1] *= factor;
            }
        }
    }

    __device__ __forceinline__ void write_shares(const float (&scores)[KEY_TILES][4], float scale, uint32 shares) {
#pragma unroll
        for (int n = 0; n < KEY_TILES; n++)
#pragma unroll
            for (int half = 0; half < 2; half++) {
                float low = exp2_approx(scores[n][half * 2] * scale - maximum[half]);
                float high = exp2_approx(scores[n][half * 2 + 1] * scale - maximum[half]);
                total[half] += low + high;
                uint32 place = shares + share_offset(row(half), column_warp * KEY_TILES + n) + lane % 4 * 4;
                asm volatile("st.shared.u32 [%0], %1;" ::"r"(place), "r"(floats_to_half2(low, high)) : "memory");
            }
    }

    // Sums divided by the totals of both column warps, as the attention tile.
    __device__ __forceinline__ void finish(const float (&sums)[COLUMN_TILES][4], float* board, uint32 tile) {
        float whole[2];
#pragma unroll
        for (int half = 0; half < 2; half++) {
            whole[half] = total[half] + __shfl_xor_sync(~0u, total[half], 1);
            whole[half] += __shfl_xor_sync(~0u, whole[half], 2);
            if (lane % 4 == 0) board[column_warp * ROWS + row(half)] = whole[half];
        }
        __syncthreads();
#pragma unroll
        for (int half = 0; half < 2; half++) {
            float inverse = 1.0f / (whole[half] + board[(column_warp ^ 1) * ROWS + row(half)]);
#pragma unroll
            for (int n = 0; n < COLUMN_TILES; n += 4) {
                half2_bits pairs[4];
#pragma unroll
                for (int i = 0; i < 4; i++)
                    pairs[i] = floats_to_half2(sums[n + i][half * 2] * inverse, sums[n + i][half * 2 + 1] * inverse);
                store_16(tile + attention_offset<ROWS>(row(half), (column_warp * COLUMN_TILES + n) / 4, lane), pairs);
            }
        }
        __syncthreads();
    }
};

// Scores of keys from `count` on are none.
__device__ __forceinline__ void cut_off(float (&scores)[KEY_TILES][4], int count, int lane) {
#pragma unroll
    for (int n = 0; n < KEY_TILES; n++)
#pragma unroll
        for (int i = 0; i < 4; i++)
            if (n * 8 + lane % 4 * 2 + i % 2 >= count) scores[n][i] = -infinity();
}

// qkv [streams * frames, tokens, 3 * CHANNELS]; scale is in powers of two: the attribute, above 0, times log2(e).
// Grid: blocks of ROWS tokens, frames of all streams.
extern "C" __global__ void __launch_bounds__(THREADS, 1)
attention_conv(const half_bits* qkv, const half_bits* weight, const half_bits* bias, const half_bits* residual,
               half_bits* output, int tokens, int frames, int out_channels, float scale) {
    extern __shared__ __align__(1024) uint8 memory[];
    uint32 queries = shared_address(memory), shares = queries + QUERY_BYTES + STAGES * TILE_BYTES;
    float* board = reinterpret_cast<float*>(memory + QUERY_BYTES + STAGES * TILE_BYTES + SHARE_BYTES);
    int lane = threadIdx.x % 32, warp = threadIdx.x / 32, first = blockIdx.x * ROWS;
    const half_bits* frame = qkv + int64(blockIdx.y) * tokens * (3 * CHANNELS);
    Rows rows = {{-infinity(), -infinity()}, {0.0f, 0.0f}, warp / COLUMN_WARPS, warp % COLUMN_WARPS, lane};
    Ring ring = {queries + QUERY_BYTES, frame + CHANNELS, tokens, 2 * ceil_div(tokens, KEYS)};

    Projection p(weight, bias, residual, output, out_channels, tokens, frames);
    prefetch_operands<ROWS>(p, first, threadIdx.x, THREADS);
    copy_tile<ROWS, THREADS>(queries, frame, first, tokens, 3 * CHANNELS, CHANNELS, threadIdx.x);
    for (int tile = 0; tile < STAGES - 1; tile++) ring.load(tile);
    float sums[COLUMN_TILES][4] = {};
    for (int tile = 0; tile < ring.tiles; tile += 2) {
        uint32 keys = ring.take(tile);
        float scores[KEY_TILES][4] = {}, top[2];
        multiply_keys(scores, queries, keys, rows.row_warp, rows.column_warp, lane);
        int remaining = tokens - tile / 2 * KEYS;
        if (remaining < KEYS) cut_off(scores, remaining - rows.column_warp * (KEYS / COLUMN_WARPS), lane);
        rows.greatest(top, scores, scale, board);
        rows.raise(top, sums);
        rows.write_shares(scores, scale, shares);
        uint32 values = ring.take(tile + 1);
        add_values(sums, shares, values, rows.row_warp, rows.column_warp, lane);
    }
    rows.finish(sums, board, queries);  // the queries are no longer needed

    project<ROWS, WARPS, OUT_TILES>(queries, p, first, warp, lane, [] {});
}
