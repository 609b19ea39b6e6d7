// rtgen::W4A4Linear, second half, on Hopper: as w4a4_linear.cu, with products by whole warpgroups (wgmma).
//
// Tensor cores of Hopper run at full speed only for wgmma, which takes weights from shared memory, a byte a code: the
// first half (w4a4_quantize_wgmma.cu) has taken them apart. Three warpgroups compute a tile of 192 tokens x 160 features, 64
// tokens each; a thread of a fourth one keeps a ring of stages filled through the copy engine.
//
// What would cost most is not the products but their scales: two multiplications for each sum of a group, and loads of the
// features' scales, which every thread needs many of. So the tensor cores multiply the scales too: a product over 16
// numbers of which all but one are zero gives scale * scale_w, exactly, since both are float16. One fused multiply-add
// a sum is left. It rounds as the two of w4a4_linear.cu do, of which the first is exact, so the bits are the same. Two
// multiplications a sum cost more than that product does: while warps do arithmetic on float32, tensor cores mostly stand still.
//
// INT8 (FP8=0) gives integer sums, which must be converted; FP8 (FP8=1) gives the same integers as float32, in units of
// 2^-18: w4a4_layout.cuh says why they are exact.
#define INT8 1
#define WGMMA 1
#include "w4a4_problem.cuh"
#include "wgmma.cuh"

#ifndef STAGES
#define STAGES 4
#endif

constexpr int WARPGROUPS = 3;
constexpr int TOKENS = WARPGROUPS * 64;  // of a tile
constexpr int FEATURES = 160;
constexpr int PART = FP8 ? 40 : 32;                      // features that a warpgroup takes at a time
constexpr int PARTS = FEATURES / PART, TILES_N = FEATURES / 8;
constexpr int THREADS = (WARPGROUPS + 1) * 128;
static_assert(FEATURE_BLOCK % FEATURES == 0, "features are padded to whole tiles");

#if __CUDA_ARCH_FEAT_SM90_ALL
// The tiles of a block in turn: those of all blocks follow each other along the features.
struct Tile {
    int first_token, first_feature;
    int rows, columns;  // tokens and features from one to the next

    __device__ __forceinline__ explicit Tile(const Problem& p) {
        int count = ceil_div(p.features, FEATURES);
        first_token = blockIdx.x / count * TOKENS, first_feature = blockIdx.x % count * FEATURES;
        rows = gridDim.x / count * TOKENS, columns = gridDim.x % count * FEATURES;
    }
    __device__ __forceinline__ bool is_within(const Problem& p) const { return first_token < p.tokens; }
    __device__ __forceinline__ void advance(const Problem& p) {  // without a division
        first_token += rows, first_feature += columns;
        if (first_feature >= p.features) first_token += TOKENS, first_feature -= ceil_div(p.features, FEATURES) * FEATURES;
    }
};
typedef float Sums[TILES_N][4];

#if FP8
typedef float Product;
#else
typedef int Product;
#endif

template <int ADD>
__device__ __forceinline__ void multiply_32(float (&c)[20], const uint32 (&a)[4], uint64 b) { wgmma_e4m3_64x40x32<ADD>(c, a, b); }
template <int ADD>
__device__ __forceinline__ void multiply_32(int (&c)[16], const uint32 (&a)[4], uint64 b) { wgmma_s8_64x32x32<ADD>(c, a, b); }
template <int ADD>
__device__ __forceinline__ void multiply_16(float (&c)[20], const uint32 (&a)[4], uint64 b) { wgmma_f16_64x40x16_rows<ADD>(c, a, b); }
template <int ADD>
__device__ __forceinline__ void multiply_16(float (&c)[16], const uint32 (&a)[4], uint64 b) { wgmma_f16_64x32x16_rows<ADD>(c, a, b); }

// A stage, in bytes; it starts at a multiple of 1024, as the swizzle of wgmma's operands asks.
constexpr int CODES = 0, WEIGHTS = TOKENS * CODE_ROW, FEATURE_SCALES = WEIGHTS + FEATURES * WEIGHT_ROW;
constexpr int TOKEN_SCALES = FEATURE_SCALES + FEATURES * SCALE_ROW, STAGE_SIZE = TOKEN_SCALES + TOKENS * STEP * 2;
constexpr int STAGE = (STAGE_SIZE + 1023) / 1024 * 1024;

struct Ring {
    uint32 stages, filled, empty;  // shared memory; two barriers a stage
    int slot = 0, phase = 0;
    __device__ __forceinline__ Ring(uint32 memory)
        : stages((memory + 16 * STAGES + 1023) & ~1023u), filled(memory), empty(memory + 8 * STAGES) {}
    __device__ __forceinline__ uint32 stage() const { return stages + slot * STAGE; }
    __device__ __forceinline__ void advance() {
        if (++slot == STAGES) slot = 0, phase ^= 1;
    }
    // By every lane: racecheck does not see what one lane's arrival after __syncwarp, which the compiler drops, says of the others.
    __device__ __forceinline__ void release() const { barrier_arrive(empty + slot * 8); }
};

__device__ __forceinline__ void copy_step(const Problem& p, int token, int feature, int step, uint32 stage, uint32 barrier) {
    int64 steps = p.steps(), features = ceil_div(p.features, FEATURE_BLOCK) * FEATURE_BLOCK;
    if (step < steps) {
        int64 tokens = step * int64(p.token_stride) + token, row = step * features + feature;
        barrier_expect(barrier, STAGE_SIZE);
        copy_bulk(stage + CODES, p.codes + tokens * CODE_ROW, TOKENS * CODE_ROW, barrier);
        copy_bulk(stage + TOKEN_SCALES, p.token_scales + tokens * (STEP * 2), TOKENS * STEP * 2, barrier);
        copy_bulk(stage + WEIGHTS, p.weights + row * WEIGHT_ROW, FEATURES * WEIGHT_ROW, barrier);
        copy_bulk(stage + FEATURE_SCALES, p.feature_scales + row * SCALE_ROW, FEATURES * SCALE_ROW, barrier);
    } else {
        const uint8* up = reinterpret_cast<const uint8*>(p.low_rank_up);
        int64 tokens = (step - steps) * p.token_stride + token, row = (step - steps) * features + feature;
        barrier_expect(barrier, (TOKENS + FEATURES) * BRANCH_ROW);
        copy_bulk(stage + CODES, p.hidden + tokens * BRANCH_ROW, TOKENS * BRANCH_ROW, barrier);
        copy_bulk(stage + WEIGHTS, up + row * BRANCH_ROW, FEATURES * BRANCH_ROW, barrier);
    }
}

__device__ __forceinline__ void produce(const Problem& p, Ring ring) {
    int steps = p.steps() + p.branch_steps;
    for (Tile tile(p); tile.is_within(p); tile.advance(p)) {
        for (int step = 0; step < steps; ++step, ring.advance()) {
            barrier_wait(ring.empty + ring.slot * 8, ring.phase ^ 1);
            copy_step(p, tile.first_token, tile.first_feature, step, ring.stage(), ring.filled + ring.slot * 8);
        }
    }
}

// What a lane needs of a step of tokens: its rows' codes as fragments, and their scales.
struct Operands {
    uint32 codes;  // shared memory
    uint32 scales[2];  // of rows g and g + 8, of both groups; only the first lane of four has numbers that are not 0
    uint64 weights, feature_scales;

    __device__ __forceinline__ Operands(uint32 stage) {
        int self = threadIdx.x, row = self / 32 * 16;
        codes = stage + CODES + place_128(row + self % 16, self % 32 / 16);
        weights = matrix_descriptor(stage + WEIGHTS, 16, 1024);
        feature_scales = matrix_descriptor_32(stage + FEATURE_SCALES, 8 * SCALE_ROW);
#pragma unroll
        for (int i = 0; i < 2; ++i) {
            asm volatile("ld.shared.u32 %0, [%1];" : "=r"(scales[i]) : "r"(stage + TOKEN_SCALES + (row + self % 32 / 4 + i * 8) * 4));
            if (self % 4 != 0) scales[i] = 0;
        }
    }
};

struct Fragments {
    uint32 codes[2][4], scale[4];
    __device__ __forceinline__ void load(const Operands& from, int group) {
        load_matrices(codes[0], from.codes ^ (group * 64));
        load_matrices(codes[1], from.codes ^ (group * 64 + 32));
        uint32 mask = group == 0 ? 0xffffu : 0xffff0000u;
        scale[0] = from.scales[0] & mask, scale[1] = from.scales[1] & mask, scale[2] = scale[3] = 0;
    }
};

// The products of PART features: sums of codes, and scales.
struct Products {
    Product sums[PART / 2];
    float factors[PART / 2];

    __device__ __forceinline__ void begin(const Fragments& a, const Operands& from, int group, int part) {
        uint64 b = advanced(from.weights, group * GROUP + part * (PART * WEIGHT_ROW));
        wgmma_fence();
        multiply_32<0>(sums, a.codes[0], b);
        multiply_32<1>(sums, a.codes[1], advanced(b, 32));
        multiply_16<0>(factors, a.scale, advanced(from.feature_scales, part * (PART * SCALE_ROW)));
        wgmma_commit();
    }
    __device__ __forceinline__ void add_to(Sums& total, int part) {
        pin(sums);
        pin(factors);
#pragma unroll
        for (int i = 0; i < PART / 2; ++i) {
            float& sum = total[part * (PART / 8) + i / 4][i % 4];
            sum = __fmaf_rn(float(sums[i]), factors[i], sum);
        }
    }
};

// Two groups, or the last one.
template <int GROUPS>
__device__ __forceinline__ void multiply_step(Sums& total, const Ring& ring) {
    Products products[1];  // an array, for else NVRTC 13.5 spills in this loop
    Fragments fragments[GROUPS];
    barrier_wait(ring.filled + ring.slot * 8, ring.phase);
    Operands operands(ring.stage());
#pragma unroll
    for (int group = 0; group < GROUPS; ++group) fragments[group].load(operands, group);
#pragma unroll
    for (int i = 0; i < GROUPS * PARTS; ++i) {
        products[0].begin(fragments[i / PARTS], operands, i / PARTS, i % PARTS);
        wgmma_wait<0>();
        products[0].add_to(total, i % PARTS);
    }
    ring.release();
}

__device__ __forceinline__ void multiply_tile(const Problem& p, Sums& total, Ring& ring) {
#pragma unroll 1
    for (int step = 0; step < p.groups / STEP; ++step, ring.advance()) multiply_step<STEP>(total, ring);
    if (p.groups % STEP != 0) {
        multiply_step<1>(total, ring);
        ring.advance();
    }
}

// total = total * unit + the product of 32 ranks of the branch.
__device__ __forceinline__ void add_branch(Sums& total, uint32 stage, float unit) {
    int self = threadIdx.x;
    uint32 hidden = stage + CODES + place_64(self / 32 * 16 + self % 16, self % 32 / 16), a[2][4];
    uint64 up = matrix_descriptor_64(stage + WEIGHTS, 8 * BRANCH_ROW);
    load_matrices(a[0], hidden);
    load_matrices(a[1], hidden ^ 32);
#pragma unroll
    for (int part = 0; part < PARTS; ++part) {
        float sums[PART / 2];
        uint64 b = advanced(up, part * (PART * BRANCH_ROW));
        wgmma_fence();
        multiply_16<0>(sums, a[0], b);
        multiply_16<1>(sums, a[1], advanced(b, 32));
        wgmma_commit();
        wgmma_wait<0>();
        pin(sums);
#pragma unroll
        for (int i = 0; i < PART / 2; ++i) {
            float& sum = total[part * (PART / 8) + i / 4][i % 4];
            sum = __fmaf_rn(sum, unit, sums[i]);
        }
    }
}

constexpr int WIDE = 8;  // neighbouring features of a lane (feature_row), of the sums of four times eight columns

// The bias of a lane's features, two float16 a word.
__device__ __forceinline__ void load_wide_bias(const Problem& p, uint32 (&bias)[TILES_N], int feature) {
    if (p.features % WIDE == 0) {
#pragma unroll
        for (int n = 0; n < TILES_N; n += 4) {
            const half_bits* from = p.bias + min(feature + n * 8, p.features - WIDE);
            asm volatile("ld.global.nc.v4.u32 {%0,%1,%2,%3}, [%4];"
                         : "=r"(bias[n]), "=r"(bias[n + 1]), "=r"(bias[n + 2]), "=r"(bias[n + 3]) : "l"(from));
        }
    } else {
        int last = p.features - 1;
#pragma unroll
        for (int n = 0; n < TILES_N; ++n) {
            int first = feature + n / 4 * 32 + n % 4 * 2;
            bias[n] = pack_halves(p.bias[min(first, last)], p.bias[min(first + 1, last)]);
        }
    }
}

// To the output, from `place` on: y gated and added to the residual, or as float16. Only so many are within the features;
// WHOLE: all, and in pieces of 16 bytes.
template <bool WHOLE>
__device__ __forceinline__ void store_wide_gated(const Problem& p, const float (&y)[WIDE], int64 place, int64 gates, int valid) {
    float* output = static_cast<float*>(p.output) + place;
    if (WHOLE) {
#pragma unroll
        for (int i = 0; i < WIDE; i += 4) {
            float4 gate = *reinterpret_cast<const float4*>(p.gate + gates + i), old = *reinterpret_cast<const float4*>(p.residual + place + i);
            *reinterpret_cast<float4*>(output + i) = {__fmaf_rn(gate.x, y[i], old.x), __fmaf_rn(gate.y, y[i + 1], old.y),
                                                      __fmaf_rn(gate.z, y[i + 2], old.z), __fmaf_rn(gate.w, y[i + 3], old.w)};
        }
    } else {
#pragma unroll
        for (int i = 0; i < WIDE; ++i)
            if (i < valid) output[i] = __fmaf_rn(p.gate[gates + i], y[i], p.residual[place + i]);
    }
}

template <bool WHOLE>
__device__ __forceinline__ void store_wide(const Problem& p, const float (&y)[WIDE], int64 place, int valid) {
    half_bits* output = static_cast<half_bits*>(p.output) + place;
    uint32 words[WIDE / 2];
#pragma unroll
    for (int i = 0; i < WIDE / 2; ++i) words[i] = floats_to_half2(y[2 * i], y[2 * i + 1]);
    if (WHOLE) {
        asm volatile("{\n.reg .pred p;\nsetp.gt.s32 p, %5, 0;\n@p st.global.v4.u32 [%0], {%1,%2,%3,%4};\n}"
                     ::"l"(output), "r"(words[0]), "r"(words[1]), "r"(words[2]), "r"(words[3]), "r"(valid) : "memory");
    } else {
#pragma unroll
        for (int i = 0; i < WIDE; ++i)
            if (i < valid) output[i] = half_bits(words[i / 2] >> (i % 2 * 16));
    }
}

// From sums to the output. `token`, `feature`: the lane's first ones. EPILOGUE: the problem's, if it is known here.
constexpr int ANY = -1;
template <bool WHOLE, int EPILOGUE>
__device__ __forceinline__ void finish_as(const Problem& p, const Sums& total, const uint32 (&bias)[TILES_N], int token, int feature) {
    const int epilogue = EPILOGUE == ANY ? p.epilogue : EPILOGUE;
#pragma unroll
    for (int n = 0; n < TILES_N; n += 4) {
        int first = feature + n * 8;
#pragma unroll
        for (int row = 0; row < 2; ++row) {
            float y[WIDE];
#pragma unroll
            for (int i = 0; i < 4; ++i) {
                y[2 * i] = total[n + i][2 * row] + low_float(bias[n + i]);
                y[2 * i + 1] = total[n + i][2 * row + 1] + high_float(bias[n + i]);
            }
            pin(y);  // else the compiler computes all first, and stores it then
            if (epilogue == GELU) {
#pragma unroll
                for (int i = 0; i < WIDE; i += 2) gelu(y[i], y[i + 1]);
            }
            int at = token + 8 * row, valid = at < p.tokens ? p.features - first : 0;
            int64 place = int64(at) * p.features + first;
            if (epilogue != GATED) store_wide<WHOLE>(p, y, place, valid);
            else if (valid > 0) store_wide_gated<WHOLE>(p, y, place, int64(at / p.tokens_per_gate) * p.features + first, valid);
        }
    }
}

__device__ __forceinline__ void finish_wide(const Problem& p, const Sums& total, const uint32 (&bias)[TILES_N], int token, int feature) {
    if (p.features % WIDE != 0) return finish_as<false, ANY>(p, total, bias, token, feature);
    if (p.epilogue == GATED) return finish_as<true, GATED>(p, total, bias, token, feature);
    if (p.epilogue == GELU) return finish_as<true, GELU>(p, total, bias, token, feature);
    finish_as<true, NONE>(p, total, bias, token, feature);
}

__device__ __forceinline__ void consume(const Problem& p, Ring ring) {
    int self = threadIdx.x;
    for (Tile tile(p); tile.is_within(p); tile.advance(p)) {
        Sums total = {};
        multiply_tile(p, total, ring);
        int feature = tile.first_feature + self % 4 * WIDE, token = tile.first_token + self / 32 * 16 + self % 32 / 4;
        uint32 bias[TILES_N];
        load_wide_bias(p, bias, feature);
        float unit = UNIT;  // of the sums; the branch's are whole
#pragma unroll 1
        for (int step = 0; step < p.branch_steps; ++step, ring.advance(), unit = 1.0f) {
            barrier_wait(ring.filled + ring.slot * 8, ring.phase);
            add_branch(total, ring.stage(), unit);
            ring.release();
        }
        finish_wide(p, total, bias, token, feature);
    }
}
#endif

extern "C" __global__ void __launch_bounds__(THREADS, 1) linear(
    const uint8* codes, const uint8* token_scales, const uint8* hidden, const uint8* weights, const uint8* feature_scales,
    const half_bits* low_rank_up, const half_bits* bias, const float* gate, const float* residual, void* output,
    int tokens, int features, int groups, int rank, int branch_steps, int token_stride, int tokens_per_gate, int epilogue) {
#if __CUDA_ARCH_FEAT_SM90_ALL
    extern __shared__ __align__(1024) uint8 memory[];
    Problem p = {codes, token_scales, hidden, weights, feature_scales, low_rank_up, bias, gate, residual, output,
                 tokens, features, groups, rank, branch_steps, token_stride, tokens_per_gate, epilogue};
    Ring ring(shared_address(memory));
    if (threadIdx.x == 0) {
        for (int i = 0; i < STAGES; ++i) {
            barrier_init(ring.filled + i * 8, 1);
            barrier_init(ring.empty + i * 8, WARPGROUPS * 128);
        }
        fence_shared_for_async();
    }
    __syncthreads();
    // This kernel starts while the first half ends; the next one may start while this one ends.
    asm volatile("griddepcontrol.wait;\ngriddepcontrol.launch_dependents;" ::: "memory");
    // The same for a whole warp, as the compiler sees by the shuffle: what follows stays in uniform registers.
    int warpgroup = __shfl_sync(~0u, threadIdx.x / 128, 0);
    if (warpgroup == WARPGROUPS) {
        asm volatile("setmaxnreg.dec.sync.aligned.u32 32;");
        if (threadIdx.x == WARPGROUPS * 128) produce(p, ring);
    } else {
        asm volatile("setmaxnreg.inc.sync.aligned.u32 160;");
        consume(p, ring);
    }
#endif
}
