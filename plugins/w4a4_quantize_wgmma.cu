// rtgen::W4A4Linear, first half, on Hopper: as w4a4_quantize.cu, and the weights taken apart for w4a4_linear_wgmma.cu.
//
// One block a multiprocessor, with most of its shared memory: how much is on its way from memory decides the time. A
// block takes up to 40 tokens, and its warps share out the groups. What a warp needs of a group lies in a ring of its own,
// so that no warp waits for another. Tokens are the columns of the product with low_rank_down, eight a tile: so a block
// has just as many as keep all multiprocessors busy, and reads low_rank_down once for all of them.
//
// In a warp, lane (g, t) holds the numbers 16t .. 16t+15 of a group of token g of a tile, and of the ranks g, g+8, g+16
// and g+24. With the numbers of a group in that order, registers are the fragments of the product, so x is read once.
//
// Other warps bring the layer's constants into the form that the second half takes. They wait for memory most of the
// time, and so cost those with tokens little. A layer that is called often has it done once, by a launch without tokens.
#define INT8 1
#define WGMMA 1
#include "w4a4_round.cuh"
#include "wgmma.cuh"

constexpr int THREADS = 512;
constexpr int TILE = 8;   // tokens
constexpr int TILES = 5;  // of a block, at most
constexpr int TOKENS = TILES * TILE;

// How a block is shared out. The rotation waits for its shuffles: more warps do without the third group of a ring.
template <bool ROTATE>
struct Roles {
    static constexpr int WARPS = ROTATE ? 12 : 8;  // with tokens
    static constexpr int DEPTH = ROTATE ? 2 : 3;   // groups in a ring: one is worked on, the others are on their way
    static constexpr int REGISTERS = ROTATE ? 152 : 184, OTHERS = ROTATE ? 56 : 72;
    static constexpr int PREPARING = THREADS - WARPS * 32;  // threads for the constants
    static constexpr int UNDER_WAY = ROTATE ? 4 : 2;        // constants of each of them on their way from memory
    static_assert(WARPS * 32 * REGISTERS + PREPARING * OTHERS <= 65536, "registers of a multiprocessor");
};

// The ring of a warp, in bytes.
constexpr int TILE_BYTES = TILE * GROUP * 2, DOWN = TILES * TILE_BYTES, PRE_SCALE = DOWN + RANKS * GROUP * 2;
constexpr int STAGE = PRE_SCALE + 2 * GROUP * 2;
constexpr int PITCH = RANKS + 4;  // floats of a token in the sums of a warp, against bank conflicts
static_assert(STAGE >= TOKENS * PITCH * 4, "the ring's memory also holds the sums");

struct Quantization {
    const half_bits* x;               // [tokens, groups * 64]
    const half_bits* pre_scale;       // [groups * 64]
    const half_bits* shift;           // [groups * 64]
    const half_bits* low_rank_down;   // [rank, groups * 64]
    const uint8* weights;             // [features, groups * 32]; null: the constants are there already
    const half_bits* feature_scales;  // [features, groups]
    const half_bits* low_rank_up;     // [features, rank]
    uint8* codes;             // [steps, token_stride, CODE_ROW]
    half_bits* token_scales;  // [steps, token_stride, 2]
    uint8* hidden;            // [ranks / 32, token_stride, BRANCH_ROW]
    uint8* turned_scales;     // [steps, padded features, SCALE_ROW]
    uint8* wide_weights;      // [steps, padded features, WEIGHT_ROW]
    uint8* up;                // [ranks / 32, padded features, BRANCH_ROW]
    int tokens, features, groups, rank, token_stride;
    int block_tokens;  // a multiple of 8, TOKENS at most

    __device__ __forceinline__ int width() const { return groups * GROUP; }
    __device__ __forceinline__ int padded_features() const { return ceil_div(features, FEATURE_BLOCK) * FEATURE_BLOCK; }
};

__device__ __forceinline__ void store_16(void* target, uint32 x, uint32 y, uint32 z, uint32 w) {
    asm volatile("st.global.v4.u32 [%0], {%1,%2,%3,%4};" ::"l"(target), "r"(x), "r"(y), "r"(z), "r"(w) : "memory");
}

// 32 packed codes to a byte each, those of even places first: as FP8, or 16 times as INT8.
__device__ __forceinline__ void store_wide(uint8* rows, int feature, int piece, const uint32 (&packed)[4]) {
#pragma unroll
    for (int odd = 0; odd < 2; ++odd) {
        uint32 v[4];
#pragma unroll
        for (int j = 0; j < 4; ++j)
            v[j] = FP8 ? codes_to_fp8(packed[j] >> (odd * 4)) : (odd ? packed[j] : packed[j] << 4) & 0xf0f0f0f0u;
        store_16(rows + place_128(feature_row(feature), piece % 4 * 2 + odd), v[0], v[1], v[2], v[3]);
    }
}

// A thread keeps its column, so that it divides once. Past the last feature nothing is written: what is there reaches no
// output.
template <int UNDER_WAY>
__device__ __forceinline__ void widen_weights(const Quantization& q, int self, int threads) {
    int pieces = q.groups * 2, rows = max(1, threads / pieces), last = q.features - 1;
    for (int place = self; place < rows * pieces; place += threads) {
        int piece = place % pieces;
        const uint8* column = q.weights + piece * 16;
        uint8* target = q.wide_weights + int64(piece / 4) * q.padded_features() * WEIGHT_ROW;
        for (int feature = place / pieces; feature <= last; feature += rows * UNDER_WAY) {
            uint32 packed[UNDER_WAY][4];
#pragma unroll
            for (int i = 0; i < UNDER_WAY; ++i) {
                const uint8* from = column + int64(min(feature + i * rows, last)) * (q.groups * 32);
                asm("ld.global.nc.v4.u32 {%0,%1,%2,%3}, [%4];"
                    : "=r"(packed[i][0]), "=r"(packed[i][1]), "=r"(packed[i][2]), "=r"(packed[i][3]) : "l"(from));
            }
#pragma unroll
            for (int i = 0; i < UNDER_WAY; ++i)
                if (feature + i * rows <= last) store_wide(target, feature + i * rows, piece, packed[i]);
        }
    }
}

__device__ __forceinline__ void turn_up(const Quantization& q, int self, int threads) {
    int padded = q.padded_features(), pieces = int(gridDim.y) * (RANKS / 8);
    for (int i = self; i < padded * pieces; i += threads) {
        int feature = i / pieces, first = i % pieces * 8, column = first % RANKS;
        const half_bits* from = q.low_rank_up + int64(feature) * q.rank + first;
        uint32 v[4] = {};
        if (feature < q.features && q.rank % 8 == 0) {
            if (first < q.rank) asm("ld.global.nc.v4.u32 {%0,%1,%2,%3}, [%4];" : "=r"(v[0]), "=r"(v[1]), "=r"(v[2]), "=r"(v[3]) : "l"(from));
        } else if (feature < q.features) {
#pragma unroll
            for (int j = 0; j < 8; ++j)
                if (first + j < q.rank) v[j / 2] |= uint32(from[j]) << (j % 2 * 16);
        }
        uint8* rows = q.up + int64(first / RANKS) * padded * BRANCH_ROW;
        store_16(rows + place_64(feature_row(feature), column / 8), v[0], v[1], v[2], v[3]);
    }
}

// Both scales of a step in every pair of places: whichever a token's scale meets, it is the right one.
template <int UNDER_WAY>
__device__ __forceinline__ void turn_feature_scales(const Quantization& q, int self, int threads) {
    int padded = q.padded_features(), steps = ceil_div(q.groups, STEP), rows = max(1, threads / steps);
    for (int place = self; place < rows * steps; place += threads) {
        int step = place % steps;
        bool whole = step * STEP + 1 < q.groups;
        const half_bits* column = q.feature_scales + step * STEP;
        uint8* target = q.turned_scales + int64(step) * padded * SCALE_ROW;
        for (int feature = place / steps; feature < padded; feature += rows * UNDER_WAY) {
            uint32 both[UNDER_WAY];
#pragma unroll
            for (int i = 0; i < UNDER_WAY; ++i) {
                const half_bits* from = column + int64(min(feature + i * rows, q.features - 1)) * q.groups;
                both[i] = pack_halves(from[0], whole ? from[1] : half_bits(0));
            }
#pragma unroll
            for (int i = 0; i < UNDER_WAY; ++i) {
                uint8* row = target + int64(feature_row(feature + i * rows)) * SCALE_ROW;
                if (feature + i * rows >= padded) break;
#pragma unroll
                for (int j = 0; j < SCALE_ROW; j += 16) store_16(row + j, both[i], both[i], both[i], both[i]);
            }
        }
    }
}

// By the last threads of a block, of which three in four take the weights apart.
template <int PREPARING, int UNDER_WAY>
__device__ __forceinline__ void prepare_constants(const Quantization& q) {
    constexpr int WIDENING = PREPARING / 4 * 3, TURNING = PREPARING - WIDENING;
    int self = int(threadIdx.x) - (THREADS - PREPARING);
    if (self < WIDENING) {
        widen_weights<UNDER_WAY>(q, blockIdx.x * WIDENING + self, gridDim.x * WIDENING);
    } else {
        turn_feature_scales<UNDER_WAY>(q, blockIdx.x * TURNING + self - WIDENING, gridDim.x * TURNING);
        turn_up(q, blockIdx.x * TURNING + self - WIDENING, gridDim.x * TURNING);
    }
}

// Tokens of a block: their groups on the way through shared memory, and what becomes of them. With WHOLE
// all tiles are there, and the compiler puts the work of one into the waits of another.
template <bool ROTATE, bool WHOLE>
struct Tokens {
    static constexpr int WARPS = Roles<ROTATE>::WARPS, DEPTH = Roles<ROTATE>::DEPTH;
    const Quantization& q;
    uint8* memory;
    int first, count, lane, warp;
    float sums[TILES][2][4];  // ranks x tokens of a tile

    __device__ __forceinline__ Tokens(const Quantization& q, uint8* memory, int first)
        : q(q), memory(memory), first(first), count(min(q.block_tokens, q.tokens - first)), lane(threadIdx.x % 32),
          warp(threadIdx.x / 32) {}

    __device__ __forceinline__ int group_of(int turn) const { return warp + turn * WARPS; }
    __device__ __forceinline__ uint32 stage_of(int turn) const { return shared_address(memory) + (warp * DEPTH + turn % DEPTH) * STAGE; }

    // Four rows at a time of a group of x or low_rank_down, 16 bytes a lane: where the lane's first ones come from and go to.
    __device__ __forceinline__ const half_bits* lane_source(const half_bits* rows, int group) const {
        return rows + int64(lane / 8) * q.width() + (lane % 8 * 8 + group * GROUP);
    }
    __device__ __forceinline__ uint32 lane_target(int turn) const { return stage_of(turn) + place_in_group(lane / 8, lane % 8); }

    __device__ __forceinline__ void copy_operands(int turn) const {
        int group = group_of(turn), rank = blockIdx.y * RANKS, ranks = q.rank - rank - lane / 8;
        const half_bits* from = lane_source(q.low_rank_down + int64(rank) * q.width(), group);
        uint32 target = lane_target(turn) + DOWN;
#pragma unroll
        for (int row = 0; row < RANKS; row += 4, from += 4 * q.width()) copy_16(target + row * (GROUP * 2), from, row < ranks);
        const half_bits* vector = lane < 8 ? q.pre_scale : q.shift;
        if (lane < 16) copy_16(stage_of(turn) + PRE_SCALE + lane * 16, vector + group * GROUP + lane % 8 * 8, true);
    }

    __device__ __forceinline__ void copy_group(int turn) const {
        if (group_of(turn) < q.groups) {
            copy_operands(turn);
            const half_bits* from = lane_source(q.x + int64(first) * q.width(), group_of(turn));
            uint32 target = lane_target(turn);
            int rows = count - lane / 8;
#pragma unroll
            for (int row = 0; row < TOKENS; row += 4, from += 4 * q.width())
                if (WHOLE || row / TILE * TILE < count) copy_16(target + row * (GROUP * 2), from, row < rows);
        }
        commit_copies();  // of nothing too: the number of copies under way is always the same
    }

    // What all tokens meet in a group: the lane's numbers of pre_scale and shift, and fragments of low_rank_down.
    struct Operands {
        float scale[OWN], shift[OWN];
        uint32 down[4][2][4];  // of four times 16 numbers and two times 16 ranks
    };

    __device__ __forceinline__ void read_vector(uint32 from, float (&found)[OWN]) const {
#pragma unroll
        for (int i = 0; i < OWN; i += 8) {
            uint32 word[4];
            asm volatile("ld.shared.v4.u32 {%0,%1,%2,%3}, [%4];"
                         : "=r"(word[0]), "=r"(word[1]), "=r"(word[2]), "=r"(word[3]) : "r"(from + lane % 4 * 32 + i * 2));
#pragma unroll
            for (int j = 0; j < 4; ++j) found[i + 2 * j] = low_float(word[j]), found[i + 2 * j + 1] = high_float(word[j]);
        }
    }

    __device__ __forceinline__ void read_operands(uint32 stage, Operands& o) const {
        // Unknown to the compiler, which else would move fragments to their registers anew for each tile.
        uint32 zero = uint32(q.tokens) >> 31;
        read_vector(stage + PRE_SCALE, o.scale);
        read_vector(stage + PRE_SCALE + GROUP * 2, o.shift);
#pragma unroll
        for (int n = 0; n < 4; ++n) {
            Words8 row = read_row(stage + DOWN, lane / 4 + 8 * n, lane % 4);
#pragma unroll
            for (int i = 0; i < 8; ++i) o.down[i / 2][n / 2][i % 2 * 2 + n % 2] = row.word[i] ^ zero;
        }
    }

    __device__ __forceinline__ void smooth(const Words8& x, const Operands& o, float (&v)[OWN], uint32 (&halves)[8]) const {
#pragma unroll
        for (int i = 0; i < 8; ++i) {  // the products are exact: fusing them changes nothing
            v[2 * i] = __fmaf_rn(low_float(x.word[i]), o.scale[2 * i], -o.shift[2 * i]);
            v[2 * i + 1] = __fmaf_rn(high_float(x.word[i]), o.scale[2 * i + 1], -o.shift[2 * i + 1]);
            halves[i] = floats_to_half2(v[2 * i], v[2 * i + 1]);
        }
    }

    __device__ __forceinline__ void quantize() {
        int g = lane / 4, t = lane % 4;
        // Tiles in which the lane's token is to be stored; blocks of further ranks have the same codes.
        int stored = blockIdx.y == 0 ? ceil_div(count - g, TILE) : 0;
        zero();
#pragma unroll
        for (int turn = 0; turn < DEPTH - 1; ++turn) copy_group(turn);
#pragma unroll 1
        for (int turn = 0, group; (group = group_of(turn)) < q.groups; ++turn) {
            wait_copies<DEPTH - 2>();
            __syncwarp();  // other lanes' copies too; and all lanes have read the group before, which is now written over
            copy_group(turn + DEPTH - 1);
            uint32 stage = stage_of(turn);
            int64 row = int64(group / STEP) * q.token_stride + first + g;
            uint8* codes = q.codes + row * CODE_ROW + (((group % STEP * 4 + t) ^ g) << 4);  // place_128; rows g + 8 are alike
            half_bits* scales = q.token_scales + row * STEP + group % STEP;
            Operands operands;
            read_operands(stage, operands);
#pragma unroll
            for (int tile = 0; tile < TILES; ++tile) {
                if (!WHOLE && tile * TILE >= count) continue;
                Words8 x = read_row(stage + tile * TILE_BYTES, g, t);
                float v[OWN];
                uint32 halves[8];
                smooth(x, operands, v, halves);
#pragma unroll
                for (int i = 0; i < 8; ++i) mma_f16(sums[tile][i % 2], operands.down[i / 2][i % 2], halves[i / 2 * 2], halves[i / 2 * 2 + 1]);
                if (ROTATE) rotate(v, t);
                Codes found(v, ROTATE);
                found.store(codes + tile * (TILE * CODE_ROW), t, tile < stored);
                if (tile < stored && t == 0) scales[tile * (TILE * STEP)] = found.scale;
            }
        }
        store_hidden();
    }

    __device__ __forceinline__ void zero() {
#pragma unroll
        for (int i = 0; i < TILES * 8; ++i) sums[i / 8][i / 4 % 2][i % 4] = 0.0f;
    }

    __device__ __forceinline__ void barrier() const { named_barrier(1, WARPS * 32); }  // of the warps with tokens

    // Sums over the warps, in their order, as float16.
    __device__ __forceinline__ void store_hidden() const {
        auto parts = reinterpret_cast<float(*)[TOKENS][PITCH]>(memory);
        int g = lane / 4, t = lane % 4;
        barrier();  // the memory has been others'
#pragma unroll
        for (int i = 0; i < TILES * 8; ++i) {
            int tile = i / 8, m = i / 4 % 2, part = i % 4;
            parts[warp][tile * TILE + 2 * t + part % 2][16 * m + part / 2 * 8 + g] = sums[tile][m][part];
        }
        barrier();
        uint8* hidden = q.hidden + int64(blockIdx.y) * q.token_stride * BRANCH_ROW;
        for (int i = threadIdx.x; i < count * (RANKS / 4); i += WARPS * 32) {
            int token = i / (RANKS / 4), rank = i % (RANKS / 4) * 4;
            float4 sum = {};
#pragma unroll
            for (int part = 0; part < WARPS; ++part) {
                float4 add = *reinterpret_cast<const float4*>(&parts[part][token][rank]);
                sum.x += add.x, sum.y += add.y, sum.z += add.z, sum.w += add.w;
            }
            uint8* target = hidden + place_64(first + token, rank / 8) + rank % 8 * 2;
            *reinterpret_cast<uint2*>(target) = {floats_to_half2(sum.x, sum.y), floats_to_half2(sum.z, sum.w)};
        }
        barrier();  // the sums have been read
    }
};

template <bool ROTATE>
__device__ __forceinline__ void quantize(const Quantization& q) {
    typedef ::Roles<ROTATE> Roles;
    extern __shared__ __align__(128) uint8 memory[];
    // This kernel starts while the one before it ends, and the second half while this one does.
    asm volatile("griddepcontrol.wait;\ngriddepcontrol.launch_dependents;" ::: "memory");
    // The same for a whole warp, as the compiler sees by the shuffle.
    if (__shfl_sync(~0u, threadIdx.x / 32, 0) < Roles::WARPS) {
        asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(Roles::REGISTERS));
        for (int first = blockIdx.x * q.block_tokens; first < q.tokens; first += gridDim.x * q.block_tokens) {
            if (min(q.block_tokens, q.tokens - first) > TOKENS - TILE) Tokens<ROTATE, true>(q, memory, first).quantize();
            else Tokens<ROTATE, false>(q, memory, first).quantize();
        }
    } else {
        asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(Roles::OTHERS));
        if (blockIdx.y == 0 && q.weights) prepare_constants<Roles::PREPARING, Roles::UNDER_WAY>(q);  // blocks of further ranks have the same
    }
}

extern "C" __global__ void __launch_bounds__(THREADS, 1) quantize_plain(
    const half_bits* x, const half_bits* pre_scale, const half_bits* shift, const half_bits* low_rank_down,
    const uint8* weights, const half_bits* feature_scales, const half_bits* low_rank_up, uint8* codes,
    half_bits* token_scales, uint8* hidden, uint8* turned_scales, uint8* wide_weights, uint8* up, int tokens, int features,
    int groups, int rank, int token_stride, int block_tokens) {
    quantize<false>({x, pre_scale, shift, low_rank_down, weights, feature_scales, low_rank_up, codes, token_scales, hidden,
                  turned_scales, wide_weights, up, tokens, features, groups, rank, token_stride, block_tokens});
}

extern "C" __global__ void __launch_bounds__(THREADS, 1) quantize_rotated(
    const half_bits* x, const half_bits* pre_scale, const half_bits* shift, const half_bits* low_rank_down,
    const uint8* weights, const half_bits* feature_scales, const half_bits* low_rank_up, uint8* codes,
    half_bits* token_scales, uint8* hidden, uint8* turned_scales, uint8* wide_weights, uint8* up, int tokens, int features,
    int groups, int rank, int token_stride, int block_tokens) {
    quantize<true>({x, pre_scale, shift, low_rank_down, weights, feature_scales, low_rank_up, codes, token_scales, hidden,
                  turned_scales, wide_weights, up, tokens, features, groups, rank, token_stride, block_tokens});
}
