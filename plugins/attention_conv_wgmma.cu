// rtgen::AttentionConv on Hopper's warpgroup products: softmax(Q Kᵀ · scale) V, a 1x1 convolution, bias and residual.
//
// A cluster of two blocks has 128 queries; each block goes over every other tile of keys. In a block one warpgroup
// copies tiles of keys and values in turn into a ring, two others load 64 queries each: their sums, 64 x CHANNELS, stay
// in registers. While one of them computes its softmax, the products of the other run. At the end the blocks exchange
// sums through distributed shared memory, and each finishes and projects 64 queries.
// Above 384 channels the sums of two blocks would not fit into registers. With SPLIT 2 there are four: two of them, with
// the same scores, for each half of the values' channels. They exchange what they finished, and each projects to half
// of the output channels.
// Macros: CHANNELS, SPLIT, STAGES (of the ring), OUT_TILES (16-row tiles of the weight a warp takes at once).
#include "attention_conv.cuh"
#include "wgmma.cuh"

constexpr int ROWS = 64;       // queries of a warpgroup, and of what a block projects
constexpr int KEYS = 32;       // of a tile
constexpr int CONSUMERS = 256;  // threads
constexpr int WIDTH = PITCH / SPLIT;  // channels of values of a block
constexpr int COLUMNS = WIDTH % 192 == 0 ? 192 : WIDTH % 128 == 0 ? 128 : 64;  // of one product
constexpr int PARTS = WIDTH / COLUMNS;
constexpr int BLOCK_BYTES = KEYS * 128;  // 64 channels of a tile
constexpr int TILE_BYTES = KEYS * PITCH * 2;
constexpr int QUERY_BYTES = 2 * ROWS * PITCH * 2;
constexpr int IN_FLIGHT = STAGES > 4 ? 3 : 2;  // tiles under way before the first of them is announced
static_assert(IN_FLIGHT < STAGES, "a tile is announced before its place is needed again");

// After the last product the memory of queries and tiles holds the sums that the blocks exchange and the attention tile.
// The maxima and totals that go with the sums have memory of their own behind the barriers. What other blocks write to is
// never the target of an asynchronous copy, which racecheck would take for unfinished: so queries are loaded, not copied.
constexpr int EXCHANGE_BYTES = ROWS * WIDTH * 4;
constexpr int EXTREMES_START = QUERY_BYTES + STAGES * (TILE_BYTES + 16);
constexpr int ATTENTION_START = EXCHANGE_BYTES;
static_assert(EXCHANGE_BYTES <= QUERY_BYTES && (SPLIT == 1 || ATTENTION_START + ROWS * PITCH * 2 <= QUERY_BYTES),
              "other blocks write to the queries' memory alone");
static_assert(ATTENTION_START + ROWS * PITCH * 2 <= QUERY_BYTES + STAGES * TILE_BYTES, "no room for the attention tile");

__device__ __forceinline__ uint32 cluster_rank() {
    uint32 rank;
    asm("mov.u32 %0, %%cluster_ctarank;" : "=r"(rank));
    return rank;
}

__device__ __forceinline__ void cluster_barrier() {
    asm volatile("barrier.cluster.arrive.release.aligned;\nbarrier.cluster.wait.acquire.aligned;" ::: "memory");
}

struct Pipeline {
    uint32 tiles;  // of the ring
    uint32 full;   // STAGES barriers, then as many that say a place is empty

    __device__ __forceinline__ uint32 empty() const { return full + STAGES * 8; }
    __device__ __forceinline__ uint32 tile(int number) const { return tiles + number % STAGES * TILE_BYTES; }
    __device__ __forceinline__ void announce(int number) const {
        fence_shared_for_async();  // what this thread copied
        barrier_arrive(full + number % STAGES * 8);
    }
    __device__ __forceinline__ void await_tile(int number) const {
        barrier_wait(full + number % STAGES * 8, number / STAGES & 1);
    }
    __device__ __forceinline__ void await_place(int number) const {
        if (number >= STAGES) barrier_wait(empty() + number % STAGES * 8, (number / STAGES & 1) ^ 1);
    }
    __device__ __forceinline__ void release(int number) const {  // once a warp
        if (threadIdx.x % 32 == 0) barrier_arrive(empty() + number % STAGES * 8);
    }
};

__device__ __forceinline__ uint32 in_block(uint32 memory, int rank) {  // the same place in another block's memory
    uint32 found;
    asm volatile("mapa.shared::cluster.u32 %0, %1, %2;" : "=r"(found) : "r"(memory), "r"(rank));
    return found;
}

// A warpgroup's 64 queries from `first` on into its rows of the tile, as many loads at once as there are registers for.
__device__ __forceinline__ void load_queries(uint32 queries, const half_bits* frame, int first, int tokens, int thread) {
    constexpr int AT_ONCE = BLOCKS > 6 ? BLOCKS / 2 : BLOCKS;
    int chunk = thread % 8, row = thread / 8;  // and every sixteenth row from there
#pragma unroll
    for (int start = 0; start < BLOCKS; start += AT_ONCE) {
        uint32 pieces[AT_ONCE][ROWS / 16][4];
#pragma unroll
        for (int block = 0; block < AT_ONCE; block++)
#pragma unroll
            for (int i = 0; i < ROWS / 16; i++) {
                int token = first + row + 16 * i, channel = (start + block) * 64 + chunk * 8;
                const half_bits* source = frame + int64(token) * (3 * CHANNELS) + channel;
                load_16(pieces[block][i], source, token < tokens && channel < CHANNELS);
            }
#pragma unroll
        for (int block = 0; block < AT_ONCE; block++)
#pragma unroll
            for (int i = 0; i < ROWS / 16; i++)
                store_16(queries + tile_offset<2 * ROWS>(row + 16 * i, (start + block) * 8 + chunk), pieces[block][i]);
    }
    fence_shared_for_async();
}

// Keys and values of every other tile, in the order in which they are used. `part` of the values' channels.
__device__ __forceinline__ void produce(const Pipeline& pipeline, const half_bits* frame, int tokens, int first_tile,
                                        int count, int part, int thread) {
    constexpr int STRIDE = 3 * CHANNELS;
    for (int number = 0; number < 2 * count; number++) {
        pipeline.await_place(number);
        int key = (first_tile + (number & ~1)) * KEYS;
        if (number % 2 == 0)
            copy_tile<KEYS, 128>(pipeline.tile(number), frame + CHANNELS, key, tokens, STRIDE, CHANNELS, thread);
        else
            copy_tile<KEYS, 128, WIDTH / 64>(pipeline.tile(number), frame + 2 * CHANNELS + part * WIDTH, key, tokens,
                                             STRIDE, CHANNELS - part * WIDTH, thread);
        commit_copies();
        if (number >= IN_FLIGHT) {
            wait_copies<IN_FLIGHT>();
            pipeline.announce(number - IN_FLIGHT);
        }
    }
    wait_copies<0>();
    for (int number = max(0, 2 * count - IN_FLIGHT); number < 2 * count; number++) pipeline.announce(number);
}

__device__ __forceinline__ void add_product(float (&c)[32], const uint32 (&a)[4], uint64 b) {
    wgmma_f16_64x64x16(c, a[0], a[1], a[2], a[3], b, 1);
}
__device__ __forceinline__ void add_product(float (&c)[64], const uint32 (&a)[4], uint64 b) {
    wgmma_f16_64x128x16(c, a[0], a[1], a[2], a[3], b, 1);
}
__device__ __forceinline__ void add_product(float (&c)[96], const uint32 (&a)[4], uint64 b) {
    wgmma_f16_64x192x16(c, a[0], a[1], a[2], a[3], b, 1);
}

// Rows g and g + 8 of each warp's 16 queries.
struct Attention {
    float sums[PARTS][COLUMNS / 2];
    float scores[KEYS / 2];
    uint32 shares[KEYS / 16][4];  // numerators of the softmax, as float16 fragments
    float maximum[2];             // in powers of two
    float total[2];

    __device__ __forceinline__ void pin_sums() {
#pragma unroll
        for (int part = 0; part < PARTS; part++) pin(sums[part]);
    }

    // `queries`: the warpgroup's first block of 64 channels.
    __device__ __forceinline__ void multiply_keys(uint32 queries, uint32 keys) {
        constexpr int STEPS = (CHANNELS + 15) / 16;
#pragma unroll
        for (int step = 0; step < STEPS; step++) {
            uint32 within = step % 4 * 32, block = step / 4;
            wgmma_f16_64x32x16(scores, matrix_descriptor(queries + block * (2 * ROWS * 128) + within, 16, 1024),
                               matrix_descriptor(keys + block * BLOCK_BYTES + within, 16, 1024), step > 0);
        }
        wgmma_commit();
    }

    __device__ __forceinline__ void add_values(uint32 values) {
#pragma unroll
        for (int step = 0; step < KEYS / 16; step++)
#pragma unroll
            for (int part = 0; part < PARTS; part++)
                add_product(sums[part], shares[step],
                            matrix_descriptor(values + part * (COLUMNS / 64) * BLOCK_BYTES + step * 2048, BLOCK_BYTES, 1024));
        wgmma_commit();
    }

    // From scores to shares. `remaining`: how many of the tile's keys exist.
    __device__ __forceinline__ void soften(float scale, int remaining, int lane) {
        if (remaining < KEYS) cut_off(remaining, lane);
        float top[2] = {-infinity(), -infinity()};
#pragma unroll
        for (int i = 0; i < KEYS / 2; i++) top[i / 2 % 2] = fmaxf(top[i / 2 % 2], scores[i]);
#pragma unroll
        for (int half = 0; half < 2; half++) {
            top[half] = fmaxf(top[half], __shfl_xor_sync(~0u, top[half], 1));
            top[half] = scale * fmaxf(top[half], __shfl_xor_sync(~0u, top[half], 2));
        }
        raise(top);
#pragma unroll
        for (int i = 0; i < KEYS / 2; i += 2) {
            int half = i / 2 % 2;
            float low = exp2_approx(scores[i] * scale - maximum[half]);
            float high = exp2_approx(scores[i + 1] * scale - maximum[half]);
            total[half] += low + high;
            shares[i / 8][i / 4 % 2 * 2 + half] = floats_to_half2(low, high);
        }
    }

    // Scores of keys from `count` on are none.
    __device__ __forceinline__ void cut_off(int count, int lane) {
#pragma unroll
        for (int i = 0; i < KEYS / 2; i++)
            if (i / 4 * 8 + lane % 4 * 2 + i % 2 >= count) scores[i] = -infinity();
    }

    __device__ __forceinline__ void raise(const float (&top)[2]) {
        bool lags = top[0] > maximum[0] + GREATEST_LAG || top[1] > maximum[1] + GREATEST_LAG;
        if (!__any_sync(~0u, lags)) return;
#pragma unroll
        for (int half = 0; half < 2; half++) {
            float raised = fmaxf(maximum[half], top[half]);
            float factor = exp2_approx(maximum[half] - raised);
            maximum[half] = raised;
            total[half] *= factor;
            scale_row(half, factor);
        }
    }

    __device__ __forceinline__ void scale_row(int half, float factor) {
#pragma unroll
        for (int part = 0; part < PARTS; part++)
#pragma unroll
            for (int i = 0; i < COLUMNS / 2; i++)
                if (i / 2 % 2 == half) sums[part][i] *= factor;
    }

    // The attention to `count` tiles. `remaining`: how many keys exist from the first of them on.
    __device__ __forceinline__ void run(const Pipeline& pipeline, uint32 queries, int count, float scale, int remaining,
                                        int lane) {
        for (int number = 0; number < 2 * count; number += 2) {
            pipeline.await_tile(number);
            pin(scores);
            wgmma_fence();
            multiply_keys(queries, pipeline.tile(number));
            wgmma_wait<0>();
            pin(scores);
            pipeline.release(number);
            soften(scale, remaining - number * KEYS, lane);
            pipeline.await_tile(number + 1);
            pin_sums();
            wgmma_fence();
            add_values(pipeline.tile(number + 1));
            wgmma_wait<0>();
            pin_sums();
            pipeline.release(number + 1);
        }
    }

    __device__ __forceinline__ void finish_totals() {
#pragma unroll
        for (int half = 0; half < 2; half++) {
            total[half] += __shfl_xor_sync(~0u, total[half], 1);
            total[half] += __shfl_xor_sync(~0u, total[half], 2);
        }
    }

    // Everything to the same thread of the other block's warpgroup, which has the same rows.
    __device__ __forceinline__ void send(uint32 memory, int rank, int thread) const {
        uint32 target = in_block(memory, rank);
#pragma unroll
        for (int i = 0; i < PARTS * COLUMNS / 2; i += 4) {
            const float* from = &sums[i / (COLUMNS / 2)][i % (COLUMNS / 2)];
            store_remote(target + (i / 4 * 128 + thread) * 16, bits(from[0], from[1], from[2], from[3]).r);
        }
        store_remote(target + EXTREMES_START + thread * 16, bits(maximum[0], maximum[1], total[0], total[1]).r);
    }

    struct Bits {
        uint32 r[4];
    };
    __device__ __forceinline__ static Bits bits(float a, float b, float c, float d) {
        return {{__float_as_uint(a), __float_as_uint(b), __float_as_uint(c), __float_as_uint(d)}};
    }

    __device__ __forceinline__ static void store_remote(uint32 target, const uint32 (&r)[4]) {
        asm volatile("st.shared::cluster.v4.u32 [%0], {%1,%2,%3,%4};"
                     ::"r"(target), "r"(r[0]), "r"(r[1]), "r"(r[2]), "r"(r[3]) : "memory");
    }

    __device__ __forceinline__ static void load_own(float (&r)[4], uint32 source) {
        asm volatile("ld.shared.v4.f32 {%0,%1,%2,%3}, [%4];"
                     : "=f"(r[0]), "=f"(r[1]), "=f"(r[2]), "=f"(r[3]) : "r"(source) : "memory");
    }

    // With what the other block sent: the attention, divided by its totals.
    __device__ __forceinline__ void merge(uint32 memory, int thread) {
        float other[4], mine[2], theirs[2];
        load_own(other, memory + EXTREMES_START + thread * 16);
#pragma unroll
        for (int half = 0; half < 2; half++) {
            float most = fmaxf(maximum[half], other[half]);
            float my_factor = exp2_approx(maximum[half] - most), their_factor = exp2_approx(other[half] - most);
            float inverse = 1.0f / (total[half] * my_factor + other[half + 2] * their_factor);
            mine[half] = my_factor * inverse;
            theirs[half] = their_factor * inverse;
        }
#pragma unroll
        for (int i = 0; i < PARTS * COLUMNS / 2; i += 4) {
            float (&to)[COLUMNS / 2] = sums[i / (COLUMNS / 2)];
            load_own(other, memory + (i / 4 * 128 + thread) * 16);
#pragma unroll
            for (int j = 0; j < 4; j++) {
                int at = i % (COLUMNS / 2) + j;
                to[at] = to[at] * mine[j / 2] + other[j] * theirs[j / 2];
            }
        }
    }

    // Into the attention tiles of all blocks that have the same 64 queries; `part` of the channels is this block's.
    __device__ __forceinline__ void store(uint32 tile, int rank, int part, int warp, int lane) const {
        uint32 own = tile + part * (WIDTH / 64) * (ROWS * 128);
#pragma unroll
        for (int half = 0; half < 2; half++)
#pragma unroll
            for (int step = 0; step < WIDTH / 32; step++) {
                half2_bits pairs[4];
#pragma unroll
                for (int i = 0; i < 4; i++) {
                    int at = (step * 4 + i) * 4 + half * 2;
                    const float* from = &sums[at / (COLUMNS / 2)][at % (COLUMNS / 2)];
                    pairs[i] = floats_to_half2(from[0], from[1]);
                }
                int row = warp * 16 + half * 8 + lane / 4;
                uint32 place = own + attention_offset<ROWS>(row, step, lane);
                store_16(place, pairs);
                if (SPLIT > 1) store_remote(in_block(place, rank ^ 2), pairs);
            }
    }
};

// qkv [streams * frames, tokens, 3 * CHANNELS]; scale is in powers of two: the attribute, above 0, times log2(e).
// Grid: a cluster for every 128 tokens, frames of all streams.
extern "C" __global__ void __cluster_dims__(2 * SPLIT, 1, 1) __launch_bounds__(CONSUMERS + 128, 1)
attention_conv_wgmma(const half_bits* qkv, const half_bits* weight, const half_bits* bias, const half_bits* residual,
                     half_bits* output, int tokens, int frames, int out_channels, float scale) {
    extern __shared__ __align__(1024) uint8 memory[];
    uint32 queries = shared_address(memory);
    Pipeline pipeline = {queries + QUERY_BYTES, queries + QUERY_BYTES + STAGES * TILE_BYTES};
    int rank = cluster_rank(), side = rank % 2, part = SPLIT > 1 ? rank / 2 : 0, first = blockIdx.x / (2 * SPLIT) * (2 * ROWS);
    int count = (ceil_div(tokens, KEYS) - side + 1) / 2;
    if (threadIdx.x == 0)
        for (int stage = 0; stage < STAGES; stage++) {
            barrier_init(pipeline.full + stage * 8, 128);
            barrier_init(pipeline.empty() + stage * 8, CONSUMERS / 32);
        }
    __syncthreads();
    Projection p(weight, bias, residual, output, out_channels, tokens, frames);
    const half_bits* frame = qkv + int64(blockIdx.y) * tokens * (3 * CHANNELS);
    if (threadIdx.x >= CONSUMERS) {
        asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(SPLIT > 1 ? 40 : 24));
        prefetch_operands<ROWS>(p, first + side * ROWS, threadIdx.x - CONSUMERS, 128);
        produce(pipeline, frame, tokens, side, count, part, threadIdx.x - CONSUMERS);
        cluster_barrier();
        cluster_barrier();
        if (SPLIT > 1) cluster_barrier();
    } else {
        asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(SPLIT > 1 ? 232 : 240));
        int group = threadIdx.x / 128, thread = threadIdx.x % 128, lane = threadIdx.x % 32;
        load_queries(queries + group * (ROWS * 128), frame, first + group * ROWS, tokens, thread);
        named_barrier(2 + group, 128);
        Attention attention = {};
        attention.maximum[0] = attention.maximum[1] = -infinity();
        attention.run(pipeline, queries + group * (ROWS * 128), count, scale, tokens - side * KEYS, lane);
        attention.finish_totals();
        cluster_barrier();  // nobody in any of the blocks uses queries or tiles any more
        if (group != side) attention.send(queries, rank ^ 1, thread);
        cluster_barrier();
        uint32 tile = queries + ATTENTION_START;
        if (group == side) {
            attention.merge(queries, thread);
            attention.store(tile, rank, part, thread / 32, lane);
        }
        constexpr int WARPS = CONSUMERS / 32;
        int warp = threadIdx.x / 32 + part * WARPS;
        project<ROWS, WARPS * SPLIT, OUT_TILES>(tile, p, first + side * ROWS, warp, lane, [] {
            if (SPLIT > 1) cluster_barrier();
            else named_barrier(1, CONSUMERS);
        });
    }
}
