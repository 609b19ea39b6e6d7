// What is done to a K/V ring of packed integer codes around attention: the chunk's keys and values are centred, rotated,
// quantized and written. Arithmetic, layouts: docs/plugins/kv_cache_attention.md. Macros: kv_cache_layout.cuh.
//
// Launch order; grid and block of each kernel stand above it:
//   centre    the first chunk's mean key and value, where this is the first chunk
//   plan      which frames stay and where the chunk's go, with pruning; the rows that are attended to: a list of tiles
//   quantize  queries to INT8, keys and values to codes, in the ring
//   pool      the mean token of each frame just written (only with pruning)
// and then attend and combine, of kv_cache_attention.cu or kv_cache_attention_wgmma.cu.
#include "kv_cache_layout.cuh"

namespace {

constexpr int LANE_DIMS = HEAD_DIM / 8;    // numbers of a row in each of eight lanes
constexpr float LEVELS = 1 << (BITS - 1);  // codes lie in -LEVELS .. LEVELS - 1
constexpr float LOG2_E = 1.4426950408889634f;

__device__ __forceinline__ int limit(int x, int low, int high) { return x < low ? low : x > high ? high : x; }

// Rows of numbers: lane l of eight holds dims 8l .. 8l + 7 and, of 128, 64 + 8l .. 64 + 8l + 7; a warp has four rows.

__device__ __forceinline__ void load_row(float (&x)[LANE_DIMS], const half_bits* row, int lane) {
#pragma unroll
    for (int i = 0; i < LANE_DIMS; i += 8) {
        uint4 w = *reinterpret_cast<const uint4*>(row + i * 8 + lane % 8 * 8);
        x[i] = low_float(w.x), x[i + 1] = high_float(w.x), x[i + 2] = low_float(w.y), x[i + 3] = high_float(w.y);
        x[i + 4] = low_float(w.z), x[i + 5] = high_float(w.z), x[i + 6] = low_float(w.w), x[i + 7] = high_float(w.w);
    }
}

// Between registers: each two numbers become their sum and their difference.
__device__ __forceinline__ void butterflies(float (&x)[LANE_DIMS], int stride) {
#pragma unroll
    for (int i = 0; i < LANE_DIMS; ++i)
        if (!(i & stride)) {
            float a = x[i], b = x[i | stride];
            x[i] = a + b, x[i | stride] = a - b;
        }
}

// Hadamard: butterflies over strides 1, 2, 4, .., then one product.
__device__ __forceinline__ void rotate(float (&x)[LANE_DIMS], int lane) {
#pragma unroll
    for (int stride = 1; stride < 8; stride *= 2) butterflies(x, stride);
#pragma unroll
    for (int stride = 1; stride < 8; stride *= 2)  // of lanes: 8, 16, 32 of dims
#pragma unroll
        for (int i = 0; i < LANE_DIMS; ++i) {
            float other = __shfl_xor_sync(ALL, x[i], stride);
            x[i] = lane & stride ? other - x[i] : x[i] + other;
        }
    if constexpr (LANE_DIMS == 16) butterflies(x, 8);  // 64 of dims
#pragma unroll
    for (int i = 0; i < LANE_DIMS; ++i) x[i] *= NORM;
}

__device__ __forceinline__ bool finite_row(const float (&x)[LANE_DIMS], int lane) {
    bool all = true;
#pragma unroll
    for (int i = 0; i < LANE_DIMS; ++i) all = all && finite(x[i]);
    return (__ballot_sync(ALL, all) >> (lane & 24) & 0xff) == 0xff;
}

__device__ __forceinline__ void extremes(const float (&x)[LANE_DIMS], float& low, float& high) {
    low = high = x[0];
#pragma unroll
    for (int i = 1; i < LANE_DIMS; ++i) low = fminf(low, x[i]), high = fmaxf(high, x[i]);
#pragma unroll
    for (int stride = 4; stride > 0; stride /= 2) {
        low = fminf(low, __shfl_xor_sync(ALL, low, stride));
        high = fmaxf(high, __shfl_xor_sync(ALL, high, stride));
    }
}

// A row to codes. The scale takes the sign that gives the extreme the code -LEVELS.
__device__ __forceinline__ void quantize_row(const float (&x)[LANE_DIMS], uint8* codes, half_bits* scale, int lane,
                                             bool write) {
    float low, high;
    extremes(x, low, high);
    half_bits bits = float_to_half((-low >= high ? low : high) / -LEVELS);
    float rounded = half_to_float(bits);
    bool valid = finite_row(x, lane) && finite(rounded);
    float inverse = valid && rounded != 0.f ? 1.f / rounded : 0.f;
    uint32 words[LANE_DIMS * BITS / 32] = {};
#pragma unroll
    for (int i = 0; i < LANE_DIMS; ++i) {
        float code = valid ? fminf(fmaxf(rintf(x[i] * inverse), -LEVELS), LEVELS - 1) : 0.f;
        words[i * BITS / 32] |= (uint32(int(code)) & ((1u << BITS) - 1)) << (BITS * i % 32);
    }
    if (!write) return;
#pragma unroll
    for (int i = 0; i < LANE_DIMS / 8; ++i) {
        uint8* target = codes + (i * 8 + lane % 8) * BITS;
        if constexpr (BITS == 4)
            *reinterpret_cast<uint32*>(target) = words[i];
        else
            *reinterpret_cast<uint2*>(target) = make_uint2(words[2 * i], words[2 * i + 1]);
    }
    if (lane % 8 == 0) *scale = valid ? bits : half_bits(0x7fff);
}

// A query to INT8. For 4-bit keys in the order in which `multiply_keys` finds the keys' dims in their words: of 32, the
// even dims and then the odd ones.
__device__ __forceinline__ void quantize_query(const float (&x)[LANE_DIMS], int8* codes, float* scale, int lane,
                                               bool write) {
    float low, high;
    extremes(x, low, high);
    float amax = fmaxf(-low, high);
    bool valid = finite_row(x, lane);
    float inverse = valid && amax > 0.f ? 127.f / amax : 0.f;
    uint32 c[LANE_DIMS];
#pragma unroll
    for (int i = 0; i < LANE_DIMS; ++i) c[i] = uint32(int(valid ? rintf(x[i] * inverse) : 0.f)) & 0xffu;
    if (!write) return;
#pragma unroll
    for (int i = 0; i < LANE_DIMS; i += 8) {
        if constexpr (BITS == 8) {
            *reinterpret_cast<uint2*>(codes + i * 8 + lane % 8 * 8) =
                make_uint2(c[i] | c[i + 1] << 8 | c[i + 2] << 16 | c[i + 3] << 24,
                           c[i + 4] | c[i + 5] << 8 | c[i + 6] << 16 | c[i + 7] << 24);
        } else {
            uint32* group = reinterpret_cast<uint32*>(codes + i * 8 + lane % 8 / 4 * 32) + lane % 4;
            group[0] = c[i] | c[i + 2] << 8 | c[i + 4] << 16 | c[i + 6] << 24;
            group[4] = c[i + 1] | c[i + 3] << 8 | c[i + 5] << 16 | c[i + 7] << 24;
        }
    }
    constexpr float UNIT = LOG2_E * NORM * (BITS == 4 ? 0.0625f : 1.f);  // 4-bit keys are multiplied by 16
    if (lane % 8 == 0) *scale = valid ? amax / 127.f * UNIT : __int_as_float(0x7fc00000);
}

// The sum of `count` rows (a power of two) of shared memory, in a fixed order; the result in row 0.
__device__ __forceinline__ void sum_rows(float* rows, int count, int width) {
    for (int half = count / 2; half > 0; half /= 2) {
        __syncthreads();
        for (int i = threadIdx.x; i < half * width; i += blockDim.x) rows[i] += rows[half * width + i];
    }
    __syncthreads();
}

__device__ __forceinline__ int unpack_code(uint32 word, int index) {  // sign-extended
    return int(word << (32 - BITS * (index + 1))) >> (32 - BITS);
}

}  // namespace

// grid (heads, 2), block 512. Only the ring's first chunk has something to do.
extern "C" __global__ void __launch_bounds__(512)
centre(const half_bits* key, const half_bits* value, half_bits* centres, const int64* write_index,
       const int64* valid_length, int H, int T) {
    if (*write_index != 0 || *valid_length != T) return;
    constexpr int COLUMNS = HEAD_DIM / 8, ROWS = 512 / COLUMNS;  // a thread reads 8 numbers of each of its tokens
    __shared__ float sums[ROWS * HEAD_DIM];
    const half_bits* head = (blockIdx.y ? value : key) + uint64(blockIdx.x) * T * HEAD_DIM;
    int column = threadIdx.x % COLUMNS, row = threadIdx.x / COLUMNS;
    float sum[8] = {};
#pragma unroll 4
    for (int token = row; token < T; token += ROWS) {
        uint4 w = *reinterpret_cast<const uint4*>(head + uint64(token) * HEAD_DIM + column * 8);
        sum[0] += low_float(w.x), sum[1] += high_float(w.x), sum[2] += low_float(w.y), sum[3] += high_float(w.y);
        sum[4] += low_float(w.z), sum[5] += high_float(w.z), sum[6] += low_float(w.w), sum[7] += high_float(w.w);
    }
#pragma unroll
    for (int i = 0; i < 8; ++i) sums[row * HEAD_DIM + column * 8 + i] = sum[i];
    sum_rows(sums, ROWS, HEAD_DIM);
    if (threadIdx.x < HEAD_DIM)
        centres[(blockIdx.y * H + blockIdx.x) * HEAD_DIM + threadIdx.x] = float_to_half(sums[threadIdx.x] / float(T));
}

namespace {

// The row of a token of the chunk, -1 where it has none. P: frame slots of a ring with pages, 0 for one without.
__device__ __forceinline__ int64 ring_row(int64 position, const int64* pages, const int64* frame_tokens, int R, int P) {
    if (position < 0) return -1;
    if (P == 0) return position < R ? position : -1;
    int length = limit(int(*frame_tokens), 1, R);
    int64 slot = position < 0x7fffffff ? int(position) / length : P;
    int64 page = slot < P ? pages[slot] : -1;
    if (page < 0 || page >= (R - P) / length) return -1;
    return page * length + (position - slot * length);
}

}  // namespace

// grid (ceil(Tpad / 32), heads, 3: queries, keys, values), block 256. P: 0 without pruning.
extern "C" __global__ void __launch_bounds__(256)
quantize(const half_bits* query, const half_bits* key, const half_bits* value, const half_bits* centres,
         const int64* write_index, const int64* pages, const int64* frame_tokens, int8* q_codes, float* q_scales,
         uint8* codes, half_bits* scales, int H, int T, int Tpad, int R, int P) {
    int lane = threadIdx.x % 32, head = blockIdx.y, kind = int(blockIdx.z) - 1;
    int token = blockIdx.x * 32 + threadIdx.x / 8;
    const half_bits* source = (kind < 0 ? query : kind == 0 ? key : value) + uint64(head) * T * HEAD_DIM;
    float x[LANE_DIMS] = {};
    if (token < T) load_row(x, source + uint64(token) * HEAD_DIM, lane);
    if (kind < 0) {
        rotate(x, lane);
        uint64 row = uint64(head) * Tpad + token;
        quantize_query(x, q_codes + row * HEAD_DIM, q_scales + row, lane, token < Tpad);
        return;
    }
    float mean[LANE_DIMS];
    load_row(mean, centres + (kind * H + head) * HEAD_DIM, lane);
#pragma unroll
    for (int i = 0; i < LANE_DIMS; ++i) x[i] -= mean[i];
    rotate(x, lane);
    int64 place = token < T ? ring_row(*write_index + token, pages, frame_tokens, R, P) : -1;
    bool write = place >= 0;  // nothing is written outside the ring
    uint64 row = uint64(kind * H + head) * R + uint64(write ? place : 0);
    quantize_row(x, codes + row * ROW_BYTES, scales + row, lane, write);
}

// grid (P, heads, 2), block 1024. Block x makes the pool row of the chunk's frame x, where it has so many.
extern "C" __global__ void __launch_bounds__(1024)
pool(uint8* codes, half_bits* scales, const int64* pages, const int64* write_index, const int64* frame_tokens, int H,
     int T, int R, int P) {
    constexpr int WORDS = ROW_BYTES / 4, ROWS = 1024 / WORDS, DIMS = 32 / BITS;
    constexpr int KEPT = ROWS > 32 ? 32 : ROWS;  // rows of sums in shared memory: 16 KB
    __shared__ float sums[KEPT * HEAD_DIM];
    int length = limit(int(*frame_tokens), 1, R);
    int64 position = *write_index + int64(blockIdx.x) * length;
    int64 start = ring_row(position, pages, frame_tokens, R, P);
    if (int64(blockIdx.x + 1) * length > T || start < 0) return;
    int frame = int(position) / length;
    uint64 head = uint64(blockIdx.z * H + blockIdx.y) * R;
    int word = threadIdx.x % WORDS, row = threadIdx.x / WORDS;
    float sum[DIMS] = {};
#pragma unroll 8
    for (int token = row; token < length; token += ROWS) {
        uint64 at = head + start + token;
        uint32 packed = reinterpret_cast<const uint32*>(codes + at * ROW_BYTES)[word];
        float scale = half_to_float(scales[at]);
#pragma unroll
        for (int i = 0; i < DIMS; ++i) sum[i] += float(unpack_code(packed, i)) * scale;
    }
#pragma unroll
    for (int turn = 0; turn < ROWS / KEPT; ++turn) {
        if (row / KEPT == turn)
#pragma unroll
            for (int i = 0; i < DIMS; ++i) {
                float* target = sums + row % KEPT * HEAD_DIM + word * DIMS + i;
                *target = turn == 0 ? sum[i] : *target + sum[i];
            }
        __syncthreads();
    }
    sum_rows(sums, KEPT, HEAD_DIM);
    if (threadIdx.x >= 32) return;
    float mean[LANE_DIMS];  // four times the same row
#pragma unroll
    for (int i = 0; i < LANE_DIMS; ++i)
        mean[i] = sums[i / 8 * 64 + threadIdx.x % 8 * 8 + i % 8] / float(length);
    uint64 target = head + (R - P) + frame;
    quantize_row(mean, codes + target * ROW_BYTES, scales + target, threadIdx.x, threadIdx.x < 8);
}

namespace {

// The ring as frames in time: sink first, then from the oldest.
struct Frames {
    int count, window, sink, write, chunk;

    __device__ __forceinline__ bool is_own(int slot) const { return slot >= write && slot < write + chunk; }
    __device__ __forceinline__ int slot(int rank) const {
        if (count < window || rank < sink) return rank;
        int turn = window > sink ? window - sink : 1, oldest = (write + chunk - sink) % turn;
        return sink + (oldest + turn + rank - sink) % turn;
    }
};

// |now - before|^2 / (|now|^2 + |before|^2) of two pool rows, over keys and values of all heads; by one warp.
__device__ float pool_change(const uint8* codes, const half_bits* scales, int H, int R, int now, int before, int lane) {
    constexpr int WORDS = ROW_BYTES / 4;
    float difference = 0.f, size = 0.f;
#pragma unroll 4
    for (int i = lane; i < 2 * H * WORDS; i += 32) {
        uint64 head = uint64(i / WORDS) * R;
        uint32 a = reinterpret_cast<const uint32*>(codes + (head + now) * ROW_BYTES)[i % WORDS];
        uint32 b = reinterpret_cast<const uint32*>(codes + (head + before) * ROW_BYTES)[i % WORDS];
        float scale_a = half_to_float(scales[head + now]), scale_b = half_to_float(scales[head + before]);
#pragma unroll
        for (int j = 0; j < 32 / BITS; ++j) {
            float x = float(unpack_code(a, j)) * scale_a, y = float(unpack_code(b, j)) * scale_b;
            difference += (x - y) * (x - y), size += x * x + y * y;
        }
    }
#pragma unroll
    for (int stride = 16; stride > 0; stride /= 2) {
        difference += __shfl_xor_sync(ALL, difference, stride);
        size += __shfl_xor_sync(ALL, size, stride);
    }
    return size > 0.f ? difference / size : 0.f;
}

__device__ __forceinline__ uint32 all_bits(uint32 x) {  // of a warp
#pragma unroll
    for (int stride = 16; stride > 0; stride /= 2) x |= __shfl_xor_sync(ALL, x, stride);
    return x;
}

// Bit s: frame slot s keeps its page. `held`: those that have one, but for the chunk's own. One warp; lane = rank in
// time. A NaN's frame stays.
__device__ uint32 kept_frames(const Frames& frames, uint32 held, float change, float keep, float recent, int lane) {
    int slot = frames.slot(lane);
    bool has_page = lane < frames.count && (held >> slot & 1);
    int newest = int(ceilf(recent * float(frames.count) - 1e-4f));  // the margin: .1 is a little more in float32
    if (newest < frames.chunk) newest = frames.chunk;
    bool old = lane >= frames.sink && lane < frames.count - newest && !frames.is_own(slot);
    uint32 olds = __ballot_sync(ALL, old), candidates = __ballot_sync(ALL, old && has_page);
    int n = __popc(olds), rank = __popc(olds & ((1u << lane) - 1));
    int stay = limit(int(rintf(keep * float(frames.count))) - (frames.count - n), 0, n);
    float score = .2f * change + .8f * float(rank) / float(n > 0 ? n : 1);
    int better = 0;
#pragma unroll
    for (int other = 0; other < 32; ++other) {
        float theirs = __shfl_sync(ALL, score, other);
        better += (candidates >> other & 1) && (theirs > score || (theirs == score && other > lane));
    }
    return all_bits(has_page && (!old || better < stay) ? 1u << slot : 0u);
}

// The page of frame slot `lane` for this pass, -1 for none: the one that it keeps, or for the chunk's own frames those
// that are free, lowest first. Every pass of a chunk comes to the same, for its own pages are free each time.
__device__ __forceinline__ int next_page(const Frames& frames, uint32 kept, int page, int page_count, int lane) {
    bool keeps = kept >> lane & 1;
    uint32 taken = all_bits(keeps ? 1u << page : 0u);
    uint32 free = ~taken & (page_count >= 32 ? ALL : (1u << page_count) - 1);
    if (keeps || !frames.is_own(lane)) return keeps ? page : -1;
    for (int turn = lane - frames.write; turn > 0; --turn) free &= free - 1;
    return __ffs(int(free)) - 1;
}

}  // namespace

// grid 1, block 1024. tiles: room for 1 + ceil(S / KEYS) + P + 1 entries of 16 bytes. Pruning takes P in 1 .. 32.
extern "C" __global__ void __launch_bounds__(1024, 1)
plan(const uint8* codes, const half_bits* scales, int64* pages, const int64* write_index, const int64* valid_length,
     const int64* frame_tokens, int4* tiles, int H, int T, int R, int P, int sink, float keep, float recent) {
    __shared__ float changes[32];
    __shared__ uint32 shared_used, shared_pruned;
    int lane = threadIdx.x % 32, warp = threadIdx.x / 32, S = R - P;
    int valid = *valid_length < 0 ? 0 : *valid_length > S ? S : int(*valid_length);
    int length = limit(int(*frame_tokens), 1, S > 0 ? S : 1), runs = 0;
    uint32 used = 0, pruned = 0;  // pages; frame slots
    if (keep < 1.f && P > 0) {
        int slots = P < 32 ? P : 32, page_count = limit(S / length, 0, slots);
        int64 held = *valid_length / length, first = *write_index / length;
        int count = held < 0 ? 0 : held > slots ? slots : int(held);
        Frames frames{count, P, sink, first < 0 || first > P ? P : int(first), T / length};
        if (warp < count) {
            float change = 1.f;
            if (warp > 0)
                change = pool_change(codes, scales, H, R, S + frames.slot(warp), S + frames.slot(warp - 1), lane);
            if (lane == 0) changes[warp] = change;
        }
        __syncthreads();
        if (warp == 0) {  // from here on lane is a slot
            bool is_first = *write_index == 0 && *valid_length == T;
            int64 page = !is_first && lane < count && !frames.is_own(lane) ? pages[lane] : -1;
            bool has_page = page >= 0 && page < page_count;
            uint32 with_page = __ballot_sync(ALL, has_page);
            uint32 kept = kept_frames(frames, with_page, lane < count ? changes[lane] : 0.f, keep, recent, lane);
            int next = next_page(frames, kept, has_page ? int(page) : 0, page_count, lane);
            if (lane < slots) pages[lane] = next;
            uint32 in_use = all_bits(next >= 0 ? 1u << next : 0u);
            uint32 without = __ballot_sync(ALL, lane < count && next < 0);
            if (lane == 0) shared_used = in_use, shared_pruned = without;
        }
        __syncthreads();
        used = shared_used, pruned = shared_pruned, runs = page_count, valid = page_count * length;
    }
    int n = 0;
    for (int page = 0; page <= runs;) {  // without pruning one turn, for all
        int end = page;
        while (end < runs && (used >> end & 1)) ++end;
        int first = page * length, last = end == runs ? valid : end * length, entries = ceil_div(last - first, KEYS);
        for (int i = threadIdx.x; i < entries; i += blockDim.x) {
            int row = first + i * KEYS;
            tiles[1 + n + i] = make_int4(row, last - row < KEYS ? last - row : KEYS, 0, -1);
        }
        n += entries;
        page = end + 1;
    }
    if (threadIdx.x != 0) return;
    if (pruned) tiles[1 + n++] = make_int4(S, P, __float_as_int(log2f(float(length))), int(pruned));
    tiles[0] = make_int4(n, 0, 0, 0);
}
