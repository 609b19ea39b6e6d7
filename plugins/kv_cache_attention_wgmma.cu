// Attention of a chunk over the quantized K/V ring on Hopper (sm_90a). Operator, layouts and the other kernels of a launch:
// docs/plugins/kv_cache_attention.md, kv_cache_attention.cu.
//
// A block has three warpgroups. One reads codes and makes of them what the tensor cores take: keys as INT8 (16 * code for
// 4 bits), values as float16 (code * scale). The other two own 64 queries each:
//     S = Q K^T in INT8;  P = 2^(S * scales - max);  O += P V in float16, with float32 sums.
// While P of one tile is multiplied, S of the next is computed and its exponentials are taken, with the maximum of the tiles
// before: what is new in a tile is rarely larger by much, and then the tile is taken again.
//
// A persistent grid, one block a multiprocessor, shares the work evenly (Part). What a block did of a task that others
// worked on too goes to memory as sums, which `combine` adds up.
#include "wgmma.cuh"

#ifndef BITS
#define BITS 4
#endif

constexpr int HEAD_DIM = 128, KEYS = 128, QUERIES = 128, STAGES = 3, MAX_PARTS = 128;
constexpr int CONSUMERS = 256, PRODUCERS = 128;
constexpr int ROW_BYTES = HEAD_DIM * BITS / 8;
constexpr float RESCALE_ABOVE = 8.0f;  // P may grow to 2^8 before O is rescaled; float16 has room for it
constexpr float TAKE_AGAIN_ABOVE = 16384.0f;  // sum of a thread's P of a row and tile; float16 holds any of them up to there

struct Tile {
    int start, rows, bias, mask;
};

struct Shared {
    uint8 keys[STAGES][KEYS * HEAD_DIM];
    uint8 values[STAGES][KEYS * HEAD_DIM * 2];
    float key_scales[STAGES][KEYS];
    float key_biases[STAGES][KEYS];
    int special[STAGES];  // whether the biases of a tile are to be added
    int4 parts[MAX_PARTS];  // task, first and last tile, slot; ends with task -1
    uint64 full_keys[STAGES], full_values[STAGES], empty_keys[STAGES], empty_values[STAGES];
};

// The share of a block, in parts: tiles [first, last) of a task, which is 128 queries of a head. As many whole tasks as every
// block can have come first; neighbouring blocks then read the same tiles of few heads at the same time, which keeps them in
// the L2 cache. The rest is split evenly, wherever that cuts a task.
struct Part {
    int task, first, last;
    int slot;  // where its sums go when others work on the task too; -1 when not
};

// By one thread. The rest is less than a task, so at most two parts; the launch sees to it that all have room.
__device__ void find_parts(int4* parts, int tasks, int tiles) {
    int blocks = gridDim.x, block = blockIdx.x, waves = tasks / blocks, count = 0;
    for (; count < waves; ++count) parts[count] = make_int4(count * blocks + block, 0, tiles, -1);
    int64 rest = int64(tasks % blocks) * tiles, begin = rest * block / blocks, end = rest * (block + 1) / blocks;
    for (int slot = 2 * block; begin < end; ++slot, ++count) {
        int task = int(begin / tiles), first = int(begin - int64(task) * tiles);
        int last = end - begin < tiles - first ? first + int(end - begin) : tiles;
        parts[count] = make_int4(waves * blocks + task, first, last, first == 0 && last == tiles ? -1 : slot);
        begin += last - first;
    }
    parts[count].x = -1;
}

__device__ __forceinline__ bool find_part(Part& part, const Shared& shared, int number) {
    int4 found = shared.parts[number];
    part = Part{found.x, found.y, found.z, found.w};
    return found.x >= 0;
}

__device__ __forceinline__ Tile read_tile(const int* tiles, int index) {
    Tile tile;
    asm volatile("ld.global.nc.v4.s32 {%0,%1,%2,%3}, [%4];"
                 : "=r"(tile.start), "=r"(tile.rows), "=r"(tile.bias), "=r"(tile.mask) : "l"(tiles + 4 + 4 * index));
    return tile;
}

__device__ __forceinline__ void store_16(uint32 address, uint32 x, uint32 y, uint32 z, uint32 w) {
    asm volatile("st.shared.v4.u32 [%0], {%1,%2,%3,%4};" ::"r"(address), "r"(x), "r"(y), "r"(z), "r"(w) : "memory");
}

__device__ __forceinline__ uint32 swizzled(uint32 row_base, int row, int piece) { return row_base + ((piece ^ (row & 7)) << 4); }

// ---------------------------------------------------------------------------------------------------- the producers

constexpr int PIECES = ROW_BYTES / 16;  // of 16 bytes in a row of codes

struct Codes {  // a row of keys or values: that of the thread's number
    uint4 words[PIECES];
    half_bits scale;
};

__device__ __forceinline__ uint4 load_16(const void* address) {
    uint4 v;
    asm volatile("ld.global.nc.v4.u32 {%0,%1,%2,%3}, [%4];" : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w) : "l"(address));
    return v;
}

__device__ __forceinline__ bool takes_part(const Tile& tile, int row) {
    return row < tile.rows && (row >= 32 || (tile.mask >> row) & 1);
}

// The tiles of a block, one after the other, and the rows of keys and values there.
struct Walk {
    const uint8* codes;
    const half_bits* scales;
    const int* table;
    int heads, rows, query_tiles;
    int number, tile, last, head;
    Tile entry;

    __device__ bool next(const Shared& shared) {
        if (++tile >= last) {
            Part part;
            if (!find_part(part, shared, number)) return false;
            ++number;
            tile = part.first, last = part.last, head = part.task / query_tiles;
        }
        entry = read_tile(table, tile);
        return true;
    }
    // Begins to load a row's codes of keys (kind 0) or values (1). A row that takes no part has the codes 0 and the scale 0.
    __device__ void load(Codes& loaded, int kind) const {
        bool valid = takes_part(entry, threadIdx.x);
        int64 place = (int64(kind) * heads + head) * rows + entry.start + threadIdx.x;
#pragma unroll
        for (int i = 0; i < PIECES; ++i) loaded.words[i] = valid ? load_16(codes + place * ROW_BYTES + 16 * i) : make_uint4(0, 0, 0, 0);
        loaded.scale = valid ? __ldg(scales + place) : half_bits(0);
    }
};

__device__ __forceinline__ void store_keys(uint32 base, const Codes& codes) {
    int row = threadIdx.x;
    uint32 place = base + row * HEAD_DIM;
#pragma unroll
    for (int i = 0; i < PIECES; ++i) {
        const uint4& w = codes.words[i];
#if BITS == 4
        constexpr uint32 HIGH = 0xf0f0f0f0u;  // a nibble in the high half of a byte is 16 times the code
        store_16(swizzled(place, row, 2 * i), (w.x << 4) & HIGH, (w.y << 4) & HIGH, (w.z << 4) & HIGH, (w.w << 4) & HIGH);
        store_16(swizzled(place, row, 2 * i + 1), w.x & HIGH, w.y & HIGH, w.z & HIGH, w.w & HIGH);
#else
        store_16(swizzled(place, row, i), w.x, w.y, w.z, w.w);
#endif
    }
}

// Two codes, of bits 0..3 and 16..19, or of bits 4..7 and 20..23, as float16. A nibble in the last bits of 1024 is 1024 plus
// the nibble, four bits further 1024 plus 16 times it; the exclusive or makes code + 8 of the nibble.
__device__ __forceinline__ half2_bits even_nibbles(uint32 word) {
    return half2_sub(and_xor(word, 0x000f000fu, 0x64086408u), 0x64086408u);
}
__device__ __forceinline__ half2_bits odd_nibbles(uint32 word) {
    return half2_fma(and_xor(word, 0x00f000f0u, 0x64806480u), 0x2c002c00u, 0xd480d480u);  // / 16 - 72
}

// Codes to float16 times their scale. Values lie in two blocks of 64 dims, rows of 128 bytes.
__device__ __forceinline__ void store_values(uint32 base, const Codes& codes) {
    int row = threadIdx.x;
    half2_bits scale = pack_halves(codes.scale, codes.scale);
#pragma unroll
    for (int i = 0; i < PIECES; ++i) {
        uint32 words[4] = {codes.words[i].x, codes.words[i].y, codes.words[i].z, codes.words[i].w};
#if BITS == 4
#pragma unroll
        for (int j = 0; j < 4; ++j) {  // eight dims, in the order 0 4 1 5 2 6 3 7
            uint32 low = words[j], high = words[j] >> 8;
            half2_bits h[4] = {even_nibbles(low), odd_nibbles(low), even_nibbles(high), odd_nibbles(high)};
            int piece = 4 * i + j;
#else
#pragma unroll
        for (int j = 0; j < 2; ++j) {  // eight dims
            half2_bits h[4];
#pragma unroll
            for (int k = 0; k < 4; ++k)  // 1024 + (code + 128) as float16
                h[k] = half2_sub(__byte_perm(words[2 * j + k / 2] ^ 0x80808080u, 0x64646464u, k % 2 ? 0x4342 : 0x4140), 0x64806480u);
            int piece = 2 * i + j;
#endif
#pragma unroll
            for (int k = 0; k < 4; ++k) h[k] = half2_mul(h[k], scale);
            store_16(swizzled(base + (piece / 8) * (KEYS * 128) + row * 128, row, piece % 8), h[0], h[1], h[2], h[3]);
        }
    }
}

struct Stage {  // where a warpgroup is in the ring of stages
    uint32 slot = 0, parity = 0;
    __device__ void next() {
        if (++slot == STAGES) slot = 0, parity ^= 1;
    }
};

__device__ __forceinline__ void produce_keys(Shared& shared, const Stage& stage, const Tile& tile, const Codes& keys) {
    int row = threadIdx.x;
    barrier_wait(shared_address(&shared.empty_keys[stage.slot]), stage.parity ^ 1);
    store_keys(shared_address(shared.keys[stage.slot]), keys);
    shared.key_scales[stage.slot][row] = half_to_float(keys.scale);
    shared.key_biases[stage.slot][row] = takes_part(tile, row) ? __int_as_float(tile.bias) : -infinity();
    if (row == 0) shared.special[stage.slot] = tile.rows < KEYS || tile.bias != 0 || tile.mask != -1;
    fence_shared_for_async();
    barrier_arrive(shared_address(&shared.full_keys[stage.slot]));
}

__device__ __forceinline__ void produce_values(Shared& shared, const Stage& stage, const Codes& values) {
    barrier_wait(shared_address(&shared.empty_values[stage.slot]), stage.parity ^ 1);
    store_values(shared_address(shared.values[stage.slot]), values);
    fence_shared_for_async();
    barrier_arrive(shared_address(&shared.full_values[stage.slot]));
}

#if BITS == 4
__device__ __forceinline__ void produce(Shared& shared, Walk walk) {
    Codes keys, values;
    if (!walk.next(shared)) return;
    walk.load(keys, 0);
    walk.load(values, 1);
    Stage stage;
    for (bool more = true; more; stage.next()) {
        Tile tile = walk.entry;
        more = walk.next(shared);
        produce_keys(shared, stage, tile, keys);
        produce_values(shared, stage, values);
        if (more) walk.load(keys, 0), walk.load(values, 1);  // after the fences: they would wait for these loads
    }
}
#else
__device__ __forceinline__ void produce(Shared& shared, Walk walk) {  // codes of a second tile would not fit the registers
    for (Stage stage; walk.next(shared); stage.next()) {
        Codes codes;
        walk.load(codes, 0);
        produce_keys(shared, stage, walk.entry, codes);
        walk.load(codes, 1);
        produce_values(shared, stage, codes);
    }
}
#endif

// ---------------------------------------------------------------------------------------------------- the consumers

struct Row {  // two rows a thread: lane / 4 and that + 8
    float scale[2];   // of the queries, with what makes base-2 logits of the integers
    float offset[2];  // added to a logit before its exponential: the largest logit so far, negated, or a little more
    float sum[2];     // of this thread's P
};

__device__ __forceinline__ float quad_max(float x) {
    x = fmaxf(x, __shfl_xor_sync(~0u, x, 1));
    return fmaxf(x, __shfl_xor_sync(~0u, x, 2));
}
__device__ __forceinline__ float quad_sum(float x) {
    x += __shfl_xor_sync(~0u, x, 1);
    return x + __shfl_xor_sync(~0u, x, 2);
}

__device__ __forceinline__ void multiply_keys(int (&s)[64], const uint32 (&queries)[16], uint64 keys) {
#pragma unroll
    for (int k = 0; k < HEAD_DIM / 32; ++k) wgmma_s8_64x128x32(s, queries + 4 * k, keys + 2 * k, k > 0);
}

__device__ __forceinline__ void multiply_values(float (&o)[64], const uint32 (&p)[32], uint64 values) {
#pragma unroll
    for (int k = 0; k < KEYS / 16; ++k)
        wgmma_f16_64x128x16(o, p[4 * k], p[4 * k + 1], p[4 * k + 2], p[4 * k + 3], values + 128 * k, 1);
}

// S to P in place, as float bits; returns what O must be multiplied by in `factor`, and whether it must be at all.
__device__ __forceinline__ bool softmax(int (&s)[64], Row& row, float (&factor)[2], const float* scales, const float* biases, bool special) {
    int column = 2 * (threadIdx.x & 3);
    float largest[2] = {-infinity(), -infinity()};
#pragma unroll
    for (int i = 0; i < 16; ++i) {
        float2 scale = *reinterpret_cast<const float2*>(scales + 8 * i + column);
#pragma unroll
        for (int h = 0; h < 2; ++h) {
            float first = __int2float_rn(s[4 * i + 2 * h]) * scale.x, second = __int2float_rn(s[4 * i + 2 * h + 1]) * scale.y;
            s[4 * i + 2 * h] = __float_as_int(first);
            s[4 * i + 2 * h + 1] = __float_as_int(second);
        }
    }
    if (special) {
        float inverse[2] = {1.0f / row.scale[0], 1.0f / row.scale[1]};
#pragma unroll
        for (int i = 0; i < 16; ++i) {
            float2 bias = *reinterpret_cast<const float2*>(biases + 8 * i + column);
#pragma unroll
            for (int h = 0; h < 2; ++h) {
                s[4 * i + 2 * h] = __float_as_int(__int_as_float(s[4 * i + 2 * h]) + bias.x * inverse[h]);
                s[4 * i + 2 * h + 1] = __float_as_int(__int_as_float(s[4 * i + 2 * h + 1]) + bias.y * inverse[h]);
            }
        }
    }
#pragma unroll
    for (int i = 0; i < 16; ++i) {
#pragma unroll
        for (int h = 0; h < 2; ++h)
            largest[h] = fmaxf(largest[h], fmaxf(__int_as_float(s[4 * i + 2 * h]), __int_as_float(s[4 * i + 2 * h + 1])));
    }
    bool rescale = false;
#pragma unroll
    for (int h = 0; h < 2; ++h) {
        float greatest = quad_max(largest[h]) * row.scale[h];
        factor[h] = 1.0f;
        if (greatest + row.offset[h] > RESCALE_ABOVE) {  // true at first, when the offset is infinity
            factor[h] = exp2_approx(-row.offset[h] - greatest);
            row.offset[h] = -greatest;
            row.sum[h] *= factor[h];
            rescale = true;
        }
    }
#pragma unroll
    for (int i = 0; i < 16; ++i) {
#pragma unroll
        for (int h = 0; h < 2; ++h) {
            float first = exp2_approx(fmaf(__int_as_float(s[4 * i + 2 * h]), row.scale[h], row.offset[h]));
            float second = exp2_approx(fmaf(__int_as_float(s[4 * i + 2 * h + 1]), row.scale[h], row.offset[h]));
            row.sum[h] += first + second;
            s[4 * i + 2 * h] = __float_as_int(first);
            s[4 * i + 2 * h + 1] = __float_as_int(second);
        }
    }
    return __any_sync(~0u, rescale);
}

// What `softmax` does, with the largest S of the tiles before: no exponential waits for the maximum of its row. Returns whether
// that was so far off that P is too large, and the tile has to be taken again. A sum that is not a number stays one either way.
__device__ __forceinline__ bool exponentials(int (&s)[64], Row& row, const float* scales, int barrier) {
    int column = 2 * (threadIdx.x & 3);
    float before[2] = {row.sum[0], row.sum[1]};
#pragma unroll
    for (int i = 0; i < 16; ++i) {
        float2 scale = *reinterpret_cast<const float2*>(scales + 8 * i + column);
#pragma unroll
        for (int h = 0; h < 2; ++h) {
            float first = exp2_approx(fmaf(__int2float_rn(s[4 * i + 2 * h]) * scale.x, row.scale[h], row.offset[h]));
            float second = exp2_approx(fmaf(__int2float_rn(s[4 * i + 2 * h + 1]) * scale.y, row.scale[h], row.offset[h]));
            row.sum[h] += first + second;
            s[4 * i + 2 * h] = __float_as_int(first);
            s[4 * i + 2 * h + 1] = __float_as_int(second);
        }
    }
    bool large = row.sum[0] - before[0] > TAKE_AGAIN_ABOVE || row.sum[1] - before[1] > TAKE_AGAIN_ABOVE;
    if (!any_of_warpgroup(large, barrier)) return false;
    row.sum[0] = before[0], row.sum[1] = before[1];
    return true;
}

__device__ __forceinline__ void round_to_halves(const int (&s)[64], uint32 (&p)[32]) {
#pragma unroll
    for (int i = 0; i < 32; ++i) p[i] = floats_to_half2(__int_as_float(s[2 * i]), __int_as_float(s[2 * i + 1]));
}

__device__ __forceinline__ void scale_rows(float (&o)[64], const float (&factor)[2]) {
#pragma unroll
    for (int i = 0; i < 64; ++i) o[i] *= factor[(i / 2) % 2];
}

// O in the rotated space, already divided by the sums, to the output: inverse rotation, the values' centre, float16.
__device__ __forceinline__ void write_output(float (&o)[64], const half_bits* centre, half_bits* out, int first_query, int queries) {
    int lane = threadIdx.x & 31, t = lane & 3;
#pragma unroll
    for (int i = 0; i < 64; i += 2) {
        float a = o[i], b = o[i + 1];
        o[i] = a + b, o[i + 1] = a - b;
    }
#pragma unroll
    for (int bit = 1; bit <= 2; bit *= 2) {
#pragma unroll
        for (int i = 0; i < 64; ++i) {
            float other = __shfl_xor_sync(~0u, o[i], bit);
            o[i] = t & bit ? other - o[i] : o[i] + other;
        }
    }
#pragma unroll
    for (int stride = 4; stride < 64; stride *= 2) {
#pragma unroll
        for (int i = 0; i < 64; ++i) {
            if (i & stride) continue;
            float a = o[i], b = o[i + stride];
            o[i] = a + b, o[i + stride] = a - b;
        }
    }
    constexpr float NORM = 0.08838834764831845f;  // 1 / sqrt(128)
    int row = first_query + ((threadIdx.x >> 5) & 3) * 16 + lane / 4;
#pragma unroll
    for (int i = 0; i < 64; ++i) {
#if BITS == 4
        int dim = 8 * (i / 4) + t + 4 * (i & 1);  // the order that store_values left
#else
        int dim = 8 * (i / 4) + 2 * t + (i & 1);
#endif
        int query = row + 8 * ((i / 2) & 1);
        if (query < queries) out[int64(query) * HEAD_DIM + dim] = float_to_half(fmaf(o[i], NORM, half_to_float(centre[dim])));
    }
}

struct Target {
    const half_bits* centres;
    half_bits* out;
    float *partial_o, *partial_ml;
    int heads, queries, query_tiles;
    // o: this warpgroup's sums; group: 0 or 1
    __device__ void finish(float (&o)[64], const Row& row, int task, int group) const {
        int head = task / query_tiles, first = (task % query_tiles) * QUERIES + group * 64;
        float inverse[2] = {1.0f / row.sum[0], 1.0f / row.sum[1]};
        scale_rows(o, inverse);
        write_output(o, centres + (heads + head) * HEAD_DIM, out + int64(head) * queries * HEAD_DIM, first, queries);
    }
    __device__ void keep(const float (&o)[64], const Row& row, int slot, int group) const {
        int thread = threadIdx.x & 127;
        float* place = partial_o + (int64(slot) * 2 + group) * 64 * 128;
#pragma unroll
        for (int i = 0; i < 64; ++i) place[i * 128 + thread] = o[i];
        if ((thread & 3) == 0) {
#pragma unroll
            for (int h = 0; h < 2; ++h) {
                int query = group * 64 + (thread / 32) * 16 + (thread & 31) / 4 + 8 * h;
                partial_ml[int64(slot) * 2 * QUERIES + query] = -row.offset[h];
                partial_ml[int64(slot) * 2 * QUERIES + QUERIES + query] = row.sum[h];
            }
        }
    }
};

// By every lane: one lane's arrival after __syncwarp would do and takes as long, but the compiler drops __syncwarp where the
// warp is together anyway, and then racecheck does not see that the other lanes have read.
__device__ __forceinline__ void release(uint64& barrier) { barrier_arrive(shared_address(&barrier)); }

// Fragments of 64 queries in registers; `codes` are those of this thread's first row.
__device__ __forceinline__ void load_queries(uint32 (&fragments)[16], const uint8* codes) {
    int t = threadIdx.x & 3;
#pragma unroll
    for (int i = 0; i < 16; ++i)  // registers alternate between rows 8 apart, then between halves of 32 dims
        fragments[i] = __ldg(reinterpret_cast<const uint32*>(codes + (i & 1) * 8 * HEAD_DIM + (i / 2) * 16 + 4 * t));
}

__device__ void consume(Shared& shared, const uint8* q_codes, const float* q_scales, const Target& target, int padded) {
    int group = (threadIdx.x - PRODUCERS) / 128, lane = threadIdx.x & 31;
    uint64 keys0 = matrix_descriptor(shared_address(shared.keys[0]), 16, 1024);
    uint64 values0 = matrix_descriptor(shared_address(shared.values[0]), KEYS * 128, 1024);
    constexpr uint32 KEYS_STEP = KEYS * HEAD_DIM / 16, VALUES_STEP = KEYS * HEAD_DIM * 2 / 16;
    Stage at_keys, at_values;
    int s[64];
    uint32 q[16], p[32];
    float o[64], factor[2];

    Part part;
    for (int number = 0; find_part(part, shared, number); ++number) {
        int head = part.task / target.query_tiles, first = (part.task % target.query_tiles) * QUERIES;
        int64 row0 = int64(head) * padded + first;
        int query0 = group * 64 + ((threadIdx.x >> 5) & 3) * 16 + lane / 4;
        load_queries(q, q_codes + (row0 + query0) * HEAD_DIM);
        Row row;
#pragma unroll
        for (int h = 0; h < 2; ++h) {
            float scale = q_scales[row0 + query0 + 8 * h];  // NaN of a query that is not finite stays
            row.scale[h] = scale == 0.0f ? 1e-30f : scale;
            row.offset[h] = infinity();
            row.sum[h] = 0.0f;
        }
#pragma unroll
        for (int i = 0; i < 64; ++i) o[i] = 0.0f;

        barrier_wait(shared_address(&shared.full_keys[at_keys.slot]), at_keys.parity);
        wgmma_fence();
        multiply_keys(s, q, keys0 + at_keys.slot * KEYS_STEP);
        wgmma_commit();
        wgmma_wait<0>();
        pin(s);
        softmax(s, row, factor, shared.key_scales[at_keys.slot], shared.key_biases[at_keys.slot], shared.special[at_keys.slot]);
        release(shared.empty_keys[at_keys.slot]);
        at_keys.next();
        round_to_halves(s, p);

        bool keys_there = false, values_there = false;
        for (int tile = part.first + 1; tile < part.last; ++tile) {
            if (!keys_there) barrier_wait(shared_address(&shared.full_keys[at_keys.slot]), at_keys.parity);
            pin(s);
            pin(o);
            wgmma_fence();
            multiply_keys(s, q, keys0 + at_keys.slot * KEYS_STEP);
            wgmma_commit();
            int special = shared.special[at_keys.slot];
            if (!values_there) barrier_wait(shared_address(&shared.full_values[at_values.slot]), at_values.parity);
            multiply_values(o, p, values0 + at_values.slot * VALUES_STEP);
            wgmma_commit();
            wgmma_wait<1>();
            pin(s);
            bool rescale = false;
            if (special || exponentials(s, row, shared.key_scales[at_keys.slot], 1 + group)) {
                if (!special) {
                    wgmma_wait<0>();
                    pin(o);
                    wgmma_fence();
                    multiply_keys(s, q, keys0 + at_keys.slot * KEYS_STEP);
                    wgmma_commit();
                    wgmma_wait<0>();
                    pin(s);
                }
                rescale = softmax(s, row, factor, shared.key_scales[at_keys.slot], shared.key_biases[at_keys.slot], special);
            }
            release(shared.empty_keys[at_keys.slot]);
            at_keys.next();
            pin(s);  // the exponentials belong before the wait, beside the product with the values
            keys_there = barrier_passed(shared_address(&shared.full_keys[at_keys.slot]), at_keys.parity);
            wgmma_wait<0>();
            pin(o);
            release(shared.empty_values[at_values.slot]);
            at_values.next();
            values_there = barrier_passed(shared_address(&shared.full_values[at_values.slot]), at_values.parity);
            round_to_halves(s, p);
            if (rescale) scale_rows(o, factor);
        }
        barrier_wait(shared_address(&shared.full_values[at_values.slot]), at_values.parity);
        pin(o);
        wgmma_fence();
        multiply_values(o, p, values0 + at_values.slot * VALUES_STEP);
        wgmma_commit();
        wgmma_wait<0>();
        pin(o);
        release(shared.empty_values[at_values.slot]);
        at_values.next();

        row.sum[0] = quad_sum(row.sum[0]);
        row.sum[1] = quad_sum(row.sum[1]);
        if (part.slot >= 0)
            target.keep(o, row, part.slot, group);
        else
            target.finish(o, row, part.task, group);
    }
}

extern "C" __global__ void __launch_bounds__(CONSUMERS + PRODUCERS, 1)
attend(const uint8* q_codes, const float* q_scales, const uint8* codes, const half_bits* scales, const half_bits* centres, const int* tiles,
       half_bits* out, float* partial_o, float* partial_ml, int heads, int queries, int padded, int rows) {
    extern __shared__ __align__(1024) uint8 memory[];
    Shared& shared = *reinterpret_cast<Shared*>(memory);
    if (threadIdx.x == 0) {
        for (int i = 0; i < STAGES; ++i) {
            barrier_init(shared_address(&shared.full_keys[i]), PRODUCERS);
            barrier_init(shared_address(&shared.full_values[i]), PRODUCERS);
            barrier_init(shared_address(&shared.empty_keys[i]), CONSUMERS);
            barrier_init(shared_address(&shared.empty_values[i]), CONSUMERS);
        }
        fence_shared_for_async();
        find_parts(shared.parts, heads * (padded / QUERIES), tiles[0]);
    }
    __syncthreads();
    int query_tiles = padded / QUERIES;
    if (threadIdx.x < PRODUCERS) {
        asm volatile("setmaxnreg.dec.sync.aligned.u32 88;");
        produce(shared, Walk{codes, scales, tiles, heads, rows, query_tiles, 0, 0, 0, 0, {}});
    } else {
        asm volatile("setmaxnreg.inc.sync.aligned.u32 208;");
        consume(shared, q_codes, q_scales, Target{centres, out, partial_o, partial_ml, heads, queries, query_tiles}, padded);
    }
}

// One block for each task that attend may have split: the last tasks % blocks; `blocks` is the grid of attend. Threads as of
// its consumers.
extern "C" __global__ void __launch_bounds__(CONSUMERS)
combine(const half_bits* centres, const int* tiles, half_bits* out, float* partial_o, float* partial_ml, int heads, int queries, int padded,
        int blocks) {
    int query_tiles = padded / QUERIES, tasks = heads * query_tiles, count = tiles[0], split = tasks % blocks;
    if (blockIdx.x >= split) return;
    int task = tasks - split + blockIdx.x;
    int64 total = int64(split) * count, begin = int64(blockIdx.x) * count, end = begin + count;
    int block = int(begin * blocks / total);  // begins there or one later, as parts are rounded down
    while (total * (block + 1) / blocks <= begin) ++block;
    if (total * block / blocks <= begin && total * (block + 1) / blocks >= end) return;  // one block did it all

    int group = threadIdx.x / 128, thread = threadIdx.x & 127;
    float o[64], largest[2];
    Row row;
#pragma unroll
    for (int i = 0; i < 64; ++i) o[i] = 0.0f;
#pragma unroll
    for (int h = 0; h < 2; ++h) largest[h] = -infinity(), row.sum[h] = 0.0f;
    for (; block < blocks && total * block / blocks < end; ++block) {
        if (total * (block + 1) / blocks == total * block / blocks) continue;  // had no work
        int slot = 2 * block + (total * block / blocks < begin);
        const float* part = partial_o + (int64(slot) * 2 + group) * 64 * 128;
        float before[2], factor[2];
#pragma unroll
        for (int h = 0; h < 2; ++h) {
            int query = group * 64 + (thread / 32) * 16 + (thread & 31) / 4 + 8 * h;
            float found = partial_ml[int64(slot) * 2 * QUERIES + query], sum = partial_ml[int64(slot) * 2 * QUERIES + QUERIES + query];
            float greatest = fmaxf(found, largest[h]);
            before[h] = exp2_approx(largest[h] - greatest), factor[h] = exp2_approx(found - greatest);
            row.sum[h] = row.sum[h] * before[h] + sum * factor[h];
            largest[h] = greatest;
        }
#pragma unroll
        for (int i = 0; i < 64; ++i) o[i] = o[i] * before[(i / 2) % 2] + part[i * 128 + thread] * factor[(i / 2) % 2];
    }
    Target{centres, out, partial_o, partial_ml, heads, queries, query_tiles}.finish(o, row, task, group);
}
