// rtgen::W4A4Linear, second half, on Hopper: as w4a4_linear.cu, with products by whole warpgroups (wgmma).
//
// Tensor cores of Hopper run at full speed only for wgmma, which takes weights from shared memory, a byte a code: the
// first half (w4a4_quantize.cu) has taken them apart. Three warpgroups compute a tile of 192 tokens x 160 features, 64
// tokens each; a thread of a fourth one keeps a ring of stages filled through the copy engine.
//
// What would cost most is not the products but their scales: two multiplications for each sum of a group, and loads of the
// features' scales, which every thread needs many of. So the tensor cores multiply the scales too: a product over 16
// numbers of which all but one are zero gives scale * scale_w, exactly, since both are float16. One fused multiply-add
// a sum is left. It rounds as the two of w4a4_linear.cu do, of which the first is exact, so the bits are the same.
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
typedef TileWalk<TOKENS, FEATURES> Tile;
typedef float Sums[1][TILES_N][4];

#if FP8
typedef float Product;
#else
typedef int Product;
#endif

__device__ __forceinline__ void multiply_32(float (&c)[20], const uint32 (&a)[4], uint64 b, int add) { wgmma_e4m3_64x40x32(c, a, b, add); }
__device__ __forceinline__ void multiply_32(int (&c)[16], const uint32 (&a)[4], uint64 b, int add) { wgmma_s8_64x32x32(c, a, b, add); }
__device__ __forceinline__ void multiply_scales(float (&c)[20], const uint32 (&a)[4], uint64 b) { wgmma_f16_64x40x16_rows(c, a, b, 0); }
__device__ __forceinline__ void multiply_scales(float (&c)[16], const uint32 (&a)[4], uint64 b) { wgmma_f16_64x32x16_rows(c, a, b, 0); }

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
    __device__ __forceinline__ void release() const {  // by each warp
        __syncwarp();
        if (threadIdx.x % 32 == 0) barrier_arrive(empty + slot * 8);
    }
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
    for (Tile tile(p, blockIdx.x); tile.is_within(p); tile.advance(p, gridDim.x)) {
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
        multiply_32(sums, a.codes[0], b, 0);
        multiply_32(sums, a.codes[1], advanced(b, 32), 1);
        multiply_scales(factors, a.scale, advanced(from.feature_scales, part * (PART * SCALE_ROW)));
        wgmma_commit();
    }
    __device__ __forceinline__ void add_to(Sums& total, int part) {
        pin(sums);
        pin(factors);
#pragma unroll
        for (int i = 0; i < PART / 2; ++i) {
            float& sum = total[0][part * (PART / 8) + i / 4][i % 4];
            sum = __fmaf_rn(float(sums[i]), factors[i], sum);
        }
    }
};

// Lets the next warpgroup begin, once.
__device__ __forceinline__ void start(int& follower) {
    if (follower > 0) asm volatile("bar.arrive %0, 256;" ::"r"(follower) : "memory");
    follower = 0;
}

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

__device__ __forceinline__ void multiply_tile(const Problem& p, Sums& total, Ring& ring, int& follower) {
    int whole = p.groups / STEP;
#pragma unroll 1
    for (int step = 0; step < whole; ++step, ring.advance()) {
        multiply_step<STEP>(total, ring);
        start(follower);
    }
    if (p.groups % STEP != 0) {
        multiply_step<1>(total, ring);
        start(follower);
        ring.advance();
    }
}

__device__ __forceinline__ void multiply_branch(Sums& total, uint32 stage) {
    int self = threadIdx.x;
    uint32 hidden = stage + CODES + place_64(self / 32 * 16 + self % 16, self % 32 / 16);
    uint32 up = stage + WEIGHTS + place_64(self % 8 + self % 32 / 16 * 8, self / 8 % 2);
#pragma unroll
    for (int part = 0; part < RANKS / 16; ++part) {
        uint32 a[4];
        load_matrices(a, hidden ^ (part * 32));
#pragma unroll
        for (int pair = 0; pair < TILES_N / 2; ++pair) {
            uint32 b[4];
            load_matrices(b, (up ^ (part * 32)) + pair * 16 * BRANCH_ROW);
            mma_f16(total[0][pair * 2], a, b[0], b[1]);
            mma_f16(total[0][pair * 2 + 1], a, b[2], b[3]);
        }
    }
}

__device__ __forceinline__ void consume(const Problem& p, Ring ring, int warpgroup) {
    int self = threadIdx.x;
    // Warpgroups start a step apart, so that one finishes a tile while the others multiply.
    int follower = warpgroup + 1 < WARPGROUPS ? warpgroup + 1 : 0;
    if (warpgroup > 0) named_barrier(warpgroup, 256);
    for (Tile tile(p, blockIdx.x); tile.is_within(p); tile.advance(p, gridDim.x)) {
        Sums total = {};
        multiply_tile(p, total, ring, follower);
#pragma unroll
        for (int n = 0; n < TILES_N; ++n)
#pragma unroll
            for (int i = 0; i < 4; ++i) total[0][n][i] *= UNIT;
#pragma unroll 1
        for (int step = 0; step < p.branch_steps; ++step, ring.advance()) {
            barrier_wait(ring.filled + ring.slot * 8, ring.phase);
            multiply_branch(total, ring.stage());
            ring.release();
        }
        uint32 bias[TILES_N];
        load_bias(p, bias, tile.first_feature, self % 4);
        finish(p, total, bias, tile.first_token + self / 32 * 16 + self % 32 / 4, tile.first_feature, self % 4);
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
            barrier_init(ring.empty + i * 8, WARPGROUPS * 4);
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
        consume(p, ring, warpgroup);
    }
#endif
}
