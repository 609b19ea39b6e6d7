// Attention of a chunk over the quantized K/V ring on all GPUs but Hopper: the chunk's queries attend to everything valid.
// Operator, layouts: docs/plugins/kv_cache_attention.md; what comes before: kv_cache_ring.cu. Macros: those of
// kv_cache_layout.cuh, and QUERIES (64, 128) rows of a task.
//
// Grid and block of each kernel stand above it:
//   attend    the attention, split evenly over the blocks
//   combine   merges the tasks that were split
#include "kv_cache_layout.cuh"
#include "mma.cuh"

#ifndef QUERIES
#define QUERIES 64
#endif

namespace {

struct Tile {
    int row, rows;
    float bias;  // of the logits, base 2
    uint32 mask;  // bit r: row r takes part; all bits where every row does
};

constexpr int THREADS = 128, WARPS = 4;

// The thread's number, read anew: what follows from it is computed where it is used, not kept in registers for good.
__device__ __forceinline__ uint32 thread() {
    uint32 x;
    asm volatile("mov.u32 %0, %%tid.x;" : "=r"(x));
    return x;
}

constexpr int ROW_TILES = QUERIES / 64;                   // of 16 queries, for each warp
#if __CUDA_ARCH__ < 800
constexpr int RESIDENT = 2;                               // blocks that a multiprocessor has registers for
#else
constexpr int RESIDENT = ROW_TILES == 1 ? 3 : 2;
#endif
constexpr int STEP = ROW_TILES == 1 ? 64 : 32;            // keys between two updates of the softmax, for registers
constexpr int COLUMN_TILES = HEAD_DIM / 8;                // of the output
constexpr int DIM_STEPS = HEAD_DIM / 32;                  // products of 32 dims in a logit
constexpr int CHUNKS = ROW_BYTES / 16;                    // of 16 bytes in a row of codes
constexpr int VALUE_ROW = HEAD_DIM * 2;                   // bytes of a row of values as halves

constexpr int VALUES_AT = 0;                              // shared memory: values as halves, codes, scales
constexpr int KEY_CODES_AT = KEYS * VALUE_ROW;
constexpr int VALUE_CODES_AT = KEY_CODES_AT + KEYS * ROW_BYTES;
constexpr int KEY_SCALES_AT = VALUE_CODES_AT + KEYS * ROW_BYTES;
constexpr int VALUE_SCALES_AT = KEY_SCALES_AT + KEYS * 8;

// Integer sums start at 1.5 * 2^23, so that their bits read as a float are that number plus the sum (below 2^22: 127 *
// 128 * HEAD_DIM at most). fma(bits, scale, -1.5 * 2^23 * scale) is then sum * scale, rounded once: the product of a
// float16 with 3 * 2^22 is exact.
constexpr int SUM_ORIGIN = 0x4b400000;
constexpr float FLOAT_ORIGIN = 12582912.f;

// GPUs for games multiply float16 at twice the rate when the sums are float16, too. There a tile's 64 products with
// values are summed so, and tiles in float32. Probabilities are then at most 1/8: sums stay finite for values to 8,000.
#ifndef HALF_SUMS
#if __CUDA_ARCH__ == 750 || __CUDA_ARCH__ == 860 || __CUDA_ARCH__ == 890 || __CUDA_ARCH__ >= 1200
#define HALF_SUMS 1
#else
#define HALF_SUMS 0
#endif
#endif
constexpr float HEADROOM = HALF_SUMS ? 3.f : 0.f;  // log2 of 1 / the greatest probability

struct Range {
    int begin, end;
};

// The units (task, tile) of a block: an even share.
__device__ __forceinline__ Range units_of(uint32 block, uint32 blocks, int units) {
    uint32 each = uint32(units) / blocks, rest = uint32(units) % blocks;  // floor(block * units / blocks) in 32 bits
    return {int(each * block + rest * block / blocks), int(each * (block + 1) + rest * (block + 1) / blocks)};
}

// What a block does of a task: tiles first .. end - 1; `left`: its units after those.
struct Segment {
    int task, first, end, left, opening;
};

__device__ __forceinline__ Segment first_segment(const Range& units, int n_tiles) {
    int task = uint32(units.begin) / n_tiles, first = units.begin - task * n_tiles, left = units.end - units.begin;
    int end = left < n_tiles - first ? first + left : n_tiles;
    return {task, first, end, left - (end - first), 1};
}

__device__ __forceinline__ void keep(volatile Segment& kept, const Segment& s) {
    kept.task = s.task, kept.first = s.first, kept.end = s.end, kept.left = s.left, kept.opening = s.opening;
}

__device__ __forceinline__ void take(Segment& s, const volatile Segment& kept) {
    s.task = kept.task, s.first = kept.first, s.end = kept.end, s.left = kept.left, s.opening = kept.opening;
}

// What a warp keeps of 16 queries.
struct Rows {
    float sums[COLUMN_TILES][4];  // of p * v, unnormalised: the fragments of mma_f16
    float total[2];               // of p: this lane's columns of rows g, g + 8
    float greatest[2];            // logit, before `scale`
    float scale[2];
};

__device__ __forceinline__ void clear(Rows& rows) {
#pragma unroll
    for (int n = 0; n < COLUMN_TILES; ++n) rows.sums[n][0] = rows.sums[n][1] = rows.sums[n][2] = rows.sums[n][3] = 0.f;
    rows.total[0] = rows.total[1] = 0.f;
    rows.greatest[0] = rows.greatest[1] = -infinity();
}

__device__ __forceinline__ float quad_sum(float x) {
    x += __shfl_xor_sync(ALL, x, 1);
    return x + __shfl_xor_sync(ALL, x, 2);
}

// Global memory to shared: a tile's codes. Rows that the tile lacks become zeros.
__device__ __forceinline__ void copy_codes(uint32 shared, const uint8* codes, const Tile& tile, int head, int H,
                                           int R) {
    uint32 id = thread();
    constexpr int PARTS = KEYS * CHUNKS;
#pragma unroll
    for (int kind = 0; kind < 2; ++kind) {
        const uint8* source = codes + uint64(uint32((kind * H + head) * R + tile.row)) * ROW_BYTES;
        uint32 target = shared + (kind ? VALUE_CODES_AT : KEY_CODES_AT);
#pragma unroll
        for (int i = 0; i < PARTS / THREADS; ++i) {
            uint32 chunk = kind ? id % CHUNKS : id % CHUNKS ^ id / 8 % CHUNKS;  // keys: no conflicts in load_matrices
            uint32 row = id / CHUNKS;  // of the first turn; eight rows are a turn of the pattern
            copy_16(target + row * ROW_BYTES + chunk * 16 + i * THREADS * 16, source + id * 16 + i * THREADS * 16,
                    int(row + i * (THREADS / CHUNKS)) < tile.rows);
        }
    }
    commit_copies();
}

// One scale a thread and turn: keys' first, then values'. Bit 16: the row takes part.
constexpr int SCALE_TURNS = 2 * KEYS / THREADS;

__device__ __forceinline__ void load_scales(uint32 (&found)[SCALE_TURNS], const half_bits* scales, const Tile& tile,
                                            int head, int H, int R) {
    uint32 id = thread();
#pragma unroll
    for (int i = 0; i < SCALE_TURNS; ++i) {
        uint32 index = i * THREADS + id, kind = index / KEYS, row = index % KEYS;
        bool valid = int(row) < tile.rows && (tile.mask == ALL || (tile.mask >> row & 1));
        found[i] = valid ? 0x10000u | scales[uint32((kind * H + head) * R + tile.row + row)] : 0u;
    }
}

// A row that takes no part: logit -inf whatever its sum is, and value 0, since codes are finite.
__device__ __forceinline__ void store_scales(uint8* shared, const uint32 (&found)[SCALE_TURNS]) {
    uint32 id = thread();
#pragma unroll
    for (int i = 0; i < SCALE_TURNS; ++i) {
        uint32 index = i * THREADS + id, row = index % KEYS;
        if (index < KEYS) {
            float scale = half_to_float(half_bits(found[i]));
            reinterpret_cast<float2*>(shared + KEY_SCALES_AT)[row] =
                make_float2(scale, found[i] & 0x10000u ? -FLOAT_ORIGIN * scale : -infinity());
        } else {
            reinterpret_cast<half_bits*>(shared + VALUE_SCALES_AT)[row] = half_bits(found[i]);
        }
    }
}

__device__ __forceinline__ void fetch(uint8* shared, uint32 (&found)[SCALE_TURNS], const uint8* codes,
                                      const half_bits* scales, const Tile& tile, int head, int H, int R) {
    copy_codes(shared_address(shared), codes, tile, head, H, R);
    load_scales(found, scales, tile, head, H, R);
}

// Eight codes to eight halves code * scale. 4 bit: in the order 0 4 1 5 2 6 3 7, for a mask then finds two at a time.
__device__ __forceinline__ uint4 expand_codes(const uint8* codes, uint32 index, half2_bits scale) {
    half2_bits pair[4];
    if constexpr (BITS == 4) {
        uint32 word = reinterpret_cast<const uint32*>(codes)[index];
#pragma unroll
        for (int i = 0; i < 4; i += 2) {  // code ^ 8 is code + 8; 0x6400 is 1024, and its last bit 1
            uint32 low = and_xor(word >> (4 * i), 0x000f000fu, 0x64086408u);       // 1024 + 8 + code
            uint32 high = and_xor(word >> (4 * i), 0x00f000f0u, 0x64806480u);      // 1024 + 16 * (8 + code)
            pair[i] = half2_mul(half2_sub(low, 0x64086408u), scale);
            pair[i + 1] = half2_mul(half2_fma(high, 0x2c002c00u, 0xd480d480u), scale);  // / 16 - 72
        }
    } else {
        uint2 words = reinterpret_cast<const uint2*>(codes)[index];
#pragma unroll
        for (int i = 0; i < 4; ++i) {  // code ^ 128 is code + 128; 0x6480 is 1152
            uint32 bytes = __byte_perm((i < 2 ? words.x : words.y) ^ 0x80808080u, 0x64646464u, i % 2 ? 0x4342 : 0x4140);
            pair[i] = half2_mul(half2_sub(bytes, 0x64806480u), scale);
        }
    }
    return make_uint4(pair[0], pair[1], pair[2], pair[3]);
}

// The dim of column 2t + i of an output tile of eight, by the order of expand_codes.
__device__ __forceinline__ int column_dim(int t, int i) { return BITS == 4 ? t + 4 * i : 2 * t + i; }

__device__ __forceinline__ void expand_values(uint8* shared) {
    uint32 id = thread();
    constexpr int PARTS = HEAD_DIM / 8, ROWS = THREADS / PARTS;  // a multiple of 8, as the swizzle is
    uint32 row = id / PARTS, part = id % PARTS ^ row % 8;
    const half_bits* scales = reinterpret_cast<const half_bits*>(shared + VALUE_SCALES_AT);
#pragma unroll
    for (int i = 0; i < KEYS * PARTS / THREADS; ++i) {
        half2_bits scale = scales[row + i * ROWS] * 0x10001u;
        *reinterpret_cast<uint4*>(shared + VALUES_AT + (row + i * ROWS) * VALUE_ROW + part * 16) =
            expand_codes(shared + VALUE_CODES_AT, id + i * THREADS, scale);
    }
}

__device__ __forceinline__ void load_queries(uint32 (&q)[ROW_TILES][DIM_STEPS][4], Rows (&rows)[ROW_TILES],
                                             const int8* codes, const float* scales, uint64 first) {
    uint32 id = thread(), lane = id % 32, g = lane / 4, t = lane % 4;
#pragma unroll
    for (int m = 0; m < ROW_TILES; ++m) {
        uint64 row = first + (id / 32 * ROW_TILES + m) * 16 + g;
        const uint32* words = reinterpret_cast<const uint32*>(codes + row * HEAD_DIM) + t;
#pragma unroll
        for (int s = 0; s < DIM_STEPS; ++s) {
            q[m][s][0] = words[s * 8], q[m][s][1] = words[s * 8 + 2 * HEAD_DIM];
            q[m][s][2] = words[s * 8 + 4], q[m][s][3] = words[s * 8 + 4 + 2 * HEAD_DIM];
        }
#pragma unroll
        for (int i = 0; i < 2; ++i) {  // a query of zeros: any scale but 0, which would make NaN of -inf
            float scale = scales[row + 8 * i];
            rows[m].scale[i] = scale == 0.f ? 1e-30f : scale;
        }
    }
}

// Logits of STEP keys before the queries' scale, from row `first` of the tile.
__device__ __forceinline__ void multiply_keys(float (&logits)[ROW_TILES][STEP / 8][4],
                                              const uint32 (&q)[ROW_TILES][DIM_STEPS][4], const uint8* shared,
                                              int first) {
    constexpr int TOGETHER = CHUNKS == 2 ? 2 : 1;  // tiles of eight keys that load_matrices fetches
    uint32 id = thread(), lane = id % 32;
    const uint32 base = shared_address(shared) + KEY_CODES_AT + first * ROW_BYTES;
    const float4* scales = reinterpret_cast<const float4*>(shared + KEY_SCALES_AT) + first / 2 + lane % 4;
#pragma unroll
    for (int group = 0; group < STEP / 8 / TOGETHER; ++group) {
        uint32 words[TOGETHER * CHUNKS];  // of each eight keys: chunk c, bytes 4t .. 4t + 3
#pragma unroll
        for (int i = 0; i < TOGETHER * CHUNKS / 4; ++i) {
            int matrix = i * 4 + lane / 8, row = matrix / CHUNKS * 8 + lane % 8, chunk = matrix % CHUNKS;
            uint32 part[4];
            chunk ^= row / (8 / CHUNKS) % CHUNKS;
            load_matrices(part, base + (group * TOGETHER * 8 + row) * ROW_BYTES + chunk * 16);
#pragma unroll
            for (int j = 0; j < 4; ++j) words[i * 4 + j] = part[j];
        }
#pragma unroll
        for (int half = 0; half < TOGETHER; ++half) {
            int n = group * TOGETHER + half;
            int sums[ROW_TILES][4];
#pragma unroll
            for (int s = 0; s < DIM_STEPS; ++s) {
                uint32 b0, b1;
                if constexpr (BITS == 4) {  // even and odd codes, times 16
                    uint32 word = words[half * CHUNKS + s];
                    b0 = word << 4 & 0xf0f0f0f0u, b1 = word & 0xf0f0f0f0u;
                } else {
                    b0 = words[half * CHUNKS + 2 * s], b1 = words[half * CHUNKS + 2 * s + 1];
                }
#pragma unroll
                for (int m = 0; m < ROW_TILES; ++m)
                    if (s == 0)
                        mma_s8_from(sums[m], q[m][s], b0, b1, SUM_ORIGIN);
                    else
                        mma_s8(sums[m], q[m][s], b0, b1);
            }
            float4 scale = scales[n * 4];  // (scale, origin) of keys 8n + 2t and 8n + 2t + 1
#pragma unroll
            for (int m = 0; m < ROW_TILES; ++m)
#pragma unroll
                for (int i = 0; i < 4; ++i)
                    logits[m][n][i] = fmaf(__int_as_float(sums[m][i]), i % 2 ? scale.z : scale.x,
                                           i % 2 ? scale.w : scale.y);
        }
    }
}

// Online softmax: logits to probabilities, as the fragments of mma_f16; older sums are rescaled to the new maximum.
__device__ __forceinline__ void softmax(uint32 (&p)[STEP / 16][4], float (&logits)[STEP / 8][4], Rows& rows,
                                        float bias) {
    if (bias != 0.f) {
        float offset[2] = {__fdividef(bias, rows.scale[0]), __fdividef(bias, rows.scale[1])};
#pragma unroll
        for (int n = 0; n < STEP / 8; ++n)
#pragma unroll
            for (int i = 0; i < 4; ++i) logits[n][i] += offset[i / 2];
    }
    float greatest[2] = {rows.greatest[0], rows.greatest[1]};
#pragma unroll
    for (int n = 0; n < STEP / 8; ++n)
#pragma unroll
        for (int i = 0; i < 4; ++i) greatest[i / 2] = fmaxf(greatest[i / 2], logits[n][i]);
#pragma unroll
    for (int i = 0; i < 2; ++i) {
        greatest[i] = fmaxf(greatest[i], __shfl_xor_sync(ALL, greatest[i], 1));
        greatest[i] = fmaxf(greatest[i], __shfl_xor_sync(ALL, greatest[i], 2));
    }
    if (__any_sync(ALL, greatest[0] != rows.greatest[0] || greatest[1] != rows.greatest[1])) {
        float shrink[2];
#pragma unroll
        for (int i = 0; i < 2; ++i) {
            shrink[i] = exp2_approx((rows.greatest[i] - greatest[i]) * rows.scale[i]);
            rows.greatest[i] = greatest[i], rows.total[i] *= shrink[i];
        }
#pragma unroll
        for (int n = 0; n < COLUMN_TILES; ++n)
#pragma unroll
            for (int i = 0; i < 4; ++i) rows.sums[n][i] *= shrink[i / 2];
    }
    float origin[2] = {-greatest[0] * rows.scale[0] - HEADROOM, -greatest[1] * rows.scale[1] - HEADROOM};
#pragma unroll
    for (int n = 0; n < STEP / 8; ++n) {
#pragma unroll
        for (int i = 0; i < 4; ++i) {
            logits[n][i] = exp2_approx(fmaf(logits[n][i], rows.scale[i / 2], origin[i / 2]));
            rows.total[i / 2] += logits[n][i];
        }
        p[n / 2][n % 2 * 2] = floats_to_half2(logits[n][0], logits[n][1]);
        p[n / 2][n % 2 * 2 + 1] = floats_to_half2(logits[n][2], logits[n][3]);
    }
}

__device__ __forceinline__ void multiply_values(Rows (&rows)[ROW_TILES], const uint32 (&p)[ROW_TILES][STEP / 16][4],
                                                const uint8* shared, int first) {
    uint32 id = thread(), lane = id % 32;
    const uint32 base =
        shared_address(shared) + VALUES_AT + (first + lane % 16) * VALUE_ROW + ((lane / 16 ^ lane % 8) * 16);
#pragma unroll
    for (int pair = 0; pair < COLUMN_TILES / 2; ++pair) {  // two tiles of eight columns
        uint32 v[STEP / 16][4];
#pragma unroll
        for (int k = 0; k < STEP / 16; ++k) load_matrices_transposed(v[k], (base ^ pair * 32) + k * 16 * VALUE_ROW);
#pragma unroll
        for (int m = 0; m < ROW_TILES; ++m) {
#if HALF_SUMS
            half2_bits sums[2][2] = {};
#pragma unroll
            for (int k = 0; k < STEP / 16; ++k) {
                mma_f16_sums(sums[0], p[m][k], v[k][0], v[k][1]);
                mma_f16_sums(sums[1], p[m][k], v[k][2], v[k][3]);
            }
#pragma unroll
            for (int n = 0; n < 2; ++n)
#pragma unroll
                for (int i = 0; i < 4; ++i)
                    rows[m].sums[pair * 2 + n][i] += i % 2 ? high_float(sums[n][i / 2]) : low_float(sums[n][i / 2]);
#else
#pragma unroll
            for (int k = 0; k < STEP / 16; ++k) {
                mma_f16(rows[m].sums[pair * 2], p[m][k], v[k][0], v[k][1]);
                mma_f16(rows[m].sums[pair * 2 + 1], p[m][k], v[k][2], v[k][3]);
            }
#endif
        }
    }
}

// Rotate 16 rows back. A column's number: bits of the tile and of i in registers, bits of t across lanes. The matrix is
// symmetric in them, so their order is of no account.
__device__ __forceinline__ void rotate_back(float (&x)[COLUMN_TILES][4]) {
    uint32 id = thread(), lane = id % 32;
#pragma unroll
    for (int n = 0; n < COLUMN_TILES; ++n)
#pragma unroll
        for (int i = 0; i < 4; i += 2) {
            float a = x[n][i], b = x[n][i + 1];
            x[n][i] = a + b, x[n][i + 1] = a - b;
        }
#pragma unroll
    for (int stride = 1; stride < 4; stride *= 2)
#pragma unroll
        for (int n = 0; n < COLUMN_TILES; ++n)
#pragma unroll
            for (int i = 0; i < 4; ++i) {
                float other = __shfl_xor_sync(ALL, x[n][i], stride);
                x[n][i] = lane & stride ? other - x[n][i] : x[n][i] + other;
            }
#pragma unroll
    for (int stride = 1; stride < COLUMN_TILES; stride *= 2)
#pragma unroll
        for (int n = 0; n < COLUMN_TILES; ++n)
            if (!(n & stride))
#pragma unroll
                for (int i = 0; i < 4; ++i) {
                    float a = x[n][i], b = x[n | stride][i];
                    x[n][i] = a + b, x[n | stride][i] = a - b;
                }
}

// Finished rows to memory: normalised, rotated back, centred again. Through the warp's own 16 rows of shared memory, so
// that whole rows are stored at once. `totals` of rows g and g + 8; `first` is the warp tile's first query.
__device__ __forceinline__ void store_rows(float (&x)[COLUMN_TILES][4], const float (&totals)[2],
                                           const half_bits* centre, half_bits* out, int first, int T,
                                           uint8* staging) {
    constexpr int PARTS = HEAD_DIM / 8;
    uint32 id = thread(), lane = id % 32, g = lane / 4, t = lane % 4;
    float factor[2] = {__fdividef(NORM, totals[0]), __fdividef(NORM, totals[1])};
    rotate_back(x);
#pragma unroll
    for (int n = 0; n < COLUMN_TILES; ++n)
#pragma unroll
        for (int i = 0; i < 4; ++i) {
            int dim = column_dim(t, i % 2), row = g + i / 2 * 8;
            float y = fmaf(x[n][i], factor[i / 2], half_to_float(centre[n * 8 + dim]));
            reinterpret_cast<half_bits*>(staging + row * VALUE_ROW + (n ^ row % 8) * 16)[dim] = float_to_half(y);
        }
    __syncwarp();
#pragma unroll
    for (int i = 0; i < 16 * PARTS / 32; ++i) {
        int row = (i * 32 + lane) / PARTS, part = (i * 32 + lane) % PARTS;
        if (first + row < T)
            *reinterpret_cast<uint4*>(out + uint64(first + row) * HEAD_DIM + part * 8) =
                *reinterpret_cast<const uint4*>(staging + row * VALUE_ROW + (part ^ row % 8) * 16);
    }
    __syncwarp();
}

// Sums of a part of a task's tiles, in the order of the threads' registers; maxima base 2 and totals by row.
__device__ __forceinline__ void store_partial(Rows (&rows)[ROW_TILES], float* sums, float* maxima) {
    uint32 id = thread(), lane = id % 32, warp = id / 32;
#pragma unroll
    for (int m = 0; m < ROW_TILES; ++m) {
#pragma unroll
        for (int n = 0; n < COLUMN_TILES; ++n)
            reinterpret_cast<float4*>(sums)[(m * COLUMN_TILES + n) * THREADS + id] =
                make_float4(rows[m].sums[n][0], rows[m].sums[n][1], rows[m].sums[n][2], rows[m].sums[n][3]);
#pragma unroll
        for (int i = 0; i < 2; ++i) {
            float total = quad_sum(rows[m].total[i]);
            int row = (warp * ROW_TILES + m) * 16 + lane / 4 + i * 8;
            if (lane % 4 == 0) maxima[row] = rows[m].greatest[i] * rows[m].scale[i], maxima[QUERIES + row] = total;
        }
    }
}

__device__ __forceinline__ Tile read_tile(const int4* tiles, int index) {
    int4 entry = tiles[1 + index];
    return {entry.x, entry.y, __int_as_float(entry.z), uint32(entry.w)};
}

}  // namespace

// grid G: as many blocks as run at a time; block 128; dynamic shared memory
// KEYS * (2 * HEAD_DIM + 2 * HEAD_DIM * BITS / 8 + 10) bytes.
extern "C" __global__ void __launch_bounds__(THREADS, RESIDENT)
attend(const int8* q_codes, const float* q_scales, const uint8* codes, const half_bits* scales,
       const half_bits* centres, const int4* tiles, half_bits* out, float* partial_o, float* partial_ml, int H, int T,
       int Tpad, int R) {
    extern __shared__ __align__(256) uint8 shared[];
    __shared__ volatile Segment kept;
    int n_tiles = tiles[0].x, q_tiles = Tpad / QUERIES;
    Range units = units_of(blockIdx.x, gridDim.x, H * q_tiles * n_tiles);
    if (units.begin >= units.end) return;

    uint32 found[SCALE_TURNS];
    Segment segment = first_segment(units, n_tiles);
    fetch(shared, found, codes, scales, read_tile(tiles, segment.first), segment.task / q_tiles, H, R);
    for (;;) {  // a task after the other
        int index = segment.first, end = segment.end, head = segment.task / q_tiles;
        if (threadIdx.x == 0) keep(kept, segment);  // shared memory: registers are for what each tile needs
        Rows rows[ROW_TILES];
        uint32 q[ROW_TILES][DIM_STEPS][4];
        load_queries(q, rows, q_codes, q_scales, uint64(segment.task) * QUERIES);
#pragma unroll
        for (int m = 0; m < ROW_TILES; ++m) clear(rows[m]);
        do {
            float bias = read_tile(tiles, index).bias;
            store_scales(shared, found);
            wait_copies<0>();
            __syncthreads();  // this tile is in shared memory, and nobody reads the values of the one before
            expand_values(shared);
            uint32 p[ROW_TILES][STEP / 16][4];
#pragma unroll
            for (int step = 0; step < KEYS / STEP; ++step) {
                float logits[ROW_TILES][STEP / 8][4];
                multiply_keys(logits, q, shared, step * STEP);
#pragma unroll
                for (int m = 0; m < ROW_TILES; ++m) softmax(p[m], logits[m], rows[m], bias);
                if (step == 0) __syncthreads();  // the values are in shared memory
                if (step == KEYS / STEP - 1) {
                    if (step > 0) __syncthreads();  // nobody reads this tile's codes any more
                    if (++index < end) fetch(shared, found, codes, scales, read_tile(tiles, index), head, H, R);
                }
                multiply_values(rows, p, shared, step * STEP);
            }
        } while (index < end);

        int n_tiles = tiles[0].x;
        take(segment, kept);
        if (segment.left > 0)
            fetch(shared, found, codes, scales, read_tile(tiles, 0), (segment.task + 1) / q_tiles, H, R);
        __syncthreads();  // the values' memory becomes staging
        if (segment.end - segment.first == n_tiles) {
#pragma unroll
            for (int m = 0; m < ROW_TILES; ++m) {
                float totals[2] = {quad_sum(rows[m].total[0]), quad_sum(rows[m].total[1])};
                store_rows(rows[m].sums, totals, centres + (H + head) * HEAD_DIM, out + uint64(head) * T * HEAD_DIM,
                           segment.task % q_tiles * QUERIES + (threadIdx.x / 32 * ROW_TILES + m) * 16, T,
                           shared + VALUES_AT + threadIdx.x / 32 * 16 * VALUE_ROW);
            }
        } else {  // slot 2b: the block began with this task; 2b + 1: it ends with it
            uint64 slot = 2 * blockIdx.x + (segment.opening ? 0 : 1);
            store_partial(rows, partial_o + slot * QUERIES * HEAD_DIM, partial_ml + slot * 2 * QUERIES);
        }
        if (segment.left == 0) return;
        ++segment.task, segment.opening = segment.first = 0;
        segment.end = segment.left < n_tiles ? segment.left : n_tiles, segment.left -= segment.end;
    }
}

// grid: tasks = heads * Tpad / QUERIES, block 128; G: attend's grid.
extern "C" __global__ void __launch_bounds__(THREADS)
combine(const half_bits* centres, const int4* tiles, half_bits* out, const float* partial_o, const float* partial_ml,
        int H, int T, int Tpad, int G) {
    __shared__ __align__(16) uint8 shared[WARPS * 16 * VALUE_ROW];
    int n_tiles = tiles[0].x, q_tiles = Tpad / QUERIES, task = blockIdx.x, units = H * q_tiles * n_tiles;
    if (n_tiles == 0) return;
    int64 begin = int64(task) * n_tiles, end = begin + n_tiles;
    int first = int(((begin + 1) * G - 1) / units), last = int((end * G - 1) / units);  // the blocks of its ends
    if (first == last) return;
    int lane = threadIdx.x % 32, warp = threadIdx.x / 32, head = task / q_tiles;
#pragma unroll 1
    for (int m = 0; m < ROW_TILES; ++m) {
        int row = (warp * ROW_TILES + m) * 16 + lane / 4;
        float sums[COLUMN_TILES][4] = {}, totals[2] = {}, greatest[2] = {-infinity(), -infinity()};
#pragma unroll 1
        for (int block = first; block <= last; ++block) {
            Range share = units_of(block, G, units);
            if (share.begin == share.end) continue;
            uint64 slot = 2 * block + (share.begin >= begin ? 0 : 1);
            const float* maxima = partial_ml + slot * 2 * QUERIES + row;
            float older[2], newer[2];
#pragma unroll
            for (int i = 0; i < 2; ++i) {
                float top = fmaxf(greatest[i], maxima[i * 8]);
                older[i] = exp2_approx(greatest[i] - top), newer[i] = exp2_approx(maxima[i * 8] - top);
                greatest[i] = top, totals[i] = totals[i] * older[i] + maxima[QUERIES + i * 8] * newer[i];
            }
            const float4* parts = reinterpret_cast<const float4*>(partial_o + slot * QUERIES * HEAD_DIM);
#pragma unroll
            for (int n = 0; n < COLUMN_TILES; ++n) {
                float4 part = parts[(m * COLUMN_TILES + n) * THREADS + threadIdx.x];
                sums[n][0] = sums[n][0] * older[0] + part.x * newer[0];
                sums[n][1] = sums[n][1] * older[0] + part.y * newer[0];
                sums[n][2] = sums[n][2] * older[1] + part.z * newer[1];
                sums[n][3] = sums[n][3] * older[1] + part.w * newer[1];
            }
        }
        store_rows(sums, totals, centres + (H + head) * HEAD_DIM, out + uint64(head) * T * HEAD_DIM,
                   task % q_tiles * QUERIES + (warp * ROW_TILES + m) * 16, T, shared + warp * 16 * VALUE_ROW);
    }
}
