// 3D Gaussians to pixels on the CPU: project, sort by depth, bin to tiles, blend. Same semantics as reference.py.
//
// A plain C interface, loaded by cpu.py, which also compiles it. No C++ library is needed, neither to link nor at run
// time. Vectors are GCC's and Clang's own, so one source serves every instruction set.
// Splat convention: the centre of pixel (row i, column j) is (j + 0.5, i + 0.5).

#include <math.h>
#include <pthread.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#if defined(__linux__)
#include <sys/mman.h>
#endif

namespace {

constexpr float kCutoff = 1.0f / 255.0f;  // a smaller alpha is skipped
constexpr float kStop = 1e-4f;            // a pixel whose transmittance would fall to this is finished
constexpr float kBlur = 0.3f;             // variance in pixels^2 that every splat gains on the image
constexpr float kSlack = 1e-3f;           // pixels by which extents are widened; the cut-off decides inside them
constexpr double kLog2E = 1.4426950408889634;
constexpr double kReach = 5.55;  // a little over ln 255: half the square of the most sigmas that a splat reaches
constexpr int kTile = 32;  // pixels, both ways
#if defined(__AVX2__)
constexpr int kLanes = 8;  // pixels blended at once
#else
constexpr int kLanes = 4;
#endif
constexpr int kStride = kTile + kLanes;  // a vector may begin at a tile's last column
constexpr int kBlock = 2048;             // Gaussians projected at a time
constexpr int kRadixBits = 11, kDigits = 1 << kRadixBits;
constexpr int kMaxThreads = 256;

typedef float Lanes __attribute__((vector_size(4 * kLanes)));
typedef int32_t Ints __attribute__((vector_size(4 * kLanes)));

template <typename T>
T min(T a, T b) {
    return b < a ? b : a;
}
template <typename T>
T max(T a, T b) {
    return a < b ? b : a;
}
template <typename T>
T clamp(T x, T low, T high) {  // low where x is not a number
    return x > low ? min(x, high) : low;
}
template <typename T>
T exchange(T& place, T value) {
    const T old = place;
    place = value;
    return old;
}

}  // namespace

extern "C" {

struct Scene {
    int64_t count;
    int32_t sh_count;        // coefficients a channel: 1, 4, 9 or 16
    const float* means;      // [count, 3]
    const float* axes;       // [count, 3, 3] rotation times diag(scale)
    const float* largest;    // [count] of the three scales
    const float* opacities;  // [count]
    const float* sh;         // [count, sh_count, 3]
};

struct View {
    double cam_from_world[12];  // [3, 4]
    double centre[3];           // where the camera stands in the world
    double fx, fy, cx, cy;
    double slope_min[2], slope_max[2];  // limits of x/z and y/z in the Jacobian
    double near, far;
    int32_t width, height;
    int32_t antialiased;
    int32_t square_reach;  // 3 sigma of the longer axis in whole 16 x 16 tiles, as INRIA's renderer has it
    float min_compensation, max_alpha;
    float background[3];
    int32_t threads;
};

struct Picture {
    float* rgb;     // [height, width, 3]
    float* alpha;   // [height, width]
    float* depth;   // [height, width] expected
    float* median;  // [height, width]
};
}

namespace {

// A Gaussian on the image, one cache line. alpha(x, y) = opacity 2^-(a (y - yc)^2 + c dx^2), with dx = x - u and
// yc = v + slope dx: the conic's square completed, which is never negative, however thin the splat.
struct alignas(64) Splat {
    float u, v, slope, a, c, opacity;
    float red, green, blue, z;
    float reach;      // log2(255 opacity): where the exponent passes it, alpha is below the cut-off
    float inv_a;
    float bottom_dx;  // dx of the ellipse's lowest point on the image; minus that is the highest's
    uint16_t x0, x1, y0, y1;  // pixels that it may touch, upper ends excluded
};

struct Key {
    uint32_t depth_bits;  // of a positive float: they sort as the float does
    uint32_t source;
};

template <typename T>
struct Buffer {  // memory that is kept from picture to picture
    T* data = nullptr;
    size_t size = 0;
    bool grow(size_t n) {
        if (n <= size) return true;
        free(data);
        constexpr size_t huge = 1 << 21;
        const size_t page = n * sizeof(T) < huge ? 64 : huge, bytes = (n * sizeof(T) + page - 1) / page * page;
        data = static_cast<T*>(aligned_alloc(page, bytes));
        size = data ? n : 0;
#if defined(__linux__)
        if (data && page == huge) madvise(data, bytes, MADV_HUGEPAGE);  // splats are gathered from all over it
#endif
        return data;
    }
    ~Buffer() { free(data); }
};

template <typename F>
struct Job {
    F* work;
    int thread;
    static void* run(void* job) {
        (*static_cast<Job*>(job)->work)(static_cast<Job*>(job)->thread);
        return nullptr;
    }
};

template <typename F>
void parallel(int threads, F work) {  // work(0) .. work(threads - 1), one of them here
    pthread_t others[kMaxThreads];
    Job<F> jobs[kMaxThreads];
    int started = 1;
    for (; started < threads; ++started) {
        jobs[started] = {&work, started};
        if (pthread_create(&others[started], nullptr, Job<F>::run, &jobs[started])) break;
    }
    work(0);
    for (int i = started; i < threads; ++i) work(i);  // for which no thread was to be had
    for (int i = 1; i < started; ++i) pthread_join(others[i], nullptr);
}

// Where the part of thread i of n things begins.
size_t part(size_t n, int i, int threads) { return n * i / threads; }

// ---- projection -----------------------------------------------------------------------------------------------------

template <int COUNT>
void colour(const float* sh, float x, float y, float z, float* rgb) {
    float basis[16] = {0.28209479f};
    const float xx = x * x, yy = y * y, zz = z * z;
    if (COUNT > 1) basis[1] = -0.48860251f * y, basis[2] = 0.48860251f * z, basis[3] = -0.48860251f * x;
    if (COUNT > 4) {
        basis[4] = 1.09254843f * x * y, basis[5] = -1.09254843f * y * z;
        basis[6] = 0.31539157f * (2 * zz - xx - yy);
        basis[7] = -1.09254843f * x * z, basis[8] = 0.54627422f * (xx - yy);
    }
    if (COUNT > 9) {
        basis[9] = -0.59004359f * y * (3 * xx - yy), basis[10] = 2.89061144f * x * y * z;
        basis[11] = -0.45704580f * y * (4 * zz - xx - yy);
        basis[12] = 0.37317633f * z * (2 * zz - 3 * xx - 3 * yy);
        basis[13] = -0.45704580f * x * (4 * zz - xx - yy), basis[14] = 1.44530572f * z * (xx - yy);
        basis[15] = -0.59004359f * x * (xx - 3 * yy);
    }
    for (int channel = 0; channel < 3; ++channel) {
        float sum = 0.5f;
        for (int k = 0; k < COUNT; ++k) sum += basis[k] * sh[3 * k + channel];
        rgb[channel] = max(0.0f, sum);
    }
}

// The Gaussian's splat; false where it shows nothing.
bool project(const Scene& scene, const View& view, int64_t i, Splat& out) {
    const float* mean = scene.means + 3 * i;
    const double* m = view.cam_from_world;
    const double z = m[8] * mean[0] + m[9] * mean[1] + m[10] * mean[2] + m[11];
    if (!(z >= view.near && z <= view.far)) return false;
    const double inv_z = 1 / z;
    const double x = (m[0] * mean[0] + m[1] * mean[1] + m[2] * mean[2] + m[3]) * inv_z;
    const double y = (m[4] * mean[0] + m[5] * mean[1] + m[6] * mean[2] + m[7]) * inv_z;
    const double u = view.fx * x + view.cx, v = view.fy * y + view.cy;
    const double jx = clamp(x, view.slope_min[0], view.slope_max[0]), jy = clamp(y, view.slope_min[1], view.slope_max[1]);
    const double fx = view.fx * inv_z, fy = view.fy * inv_z;

    // cheap bound first: no row of J R Q diag(s) is longer than J's times the largest scale
    const double largest = double(scene.largest[i]) * scene.largest[i], sigmas2 = 2 * kReach;
    const double away_x = max(-u, u - view.width), away_y = max(-v, v - view.height);
    if (away_x > 0 && away_x * away_x > sigmas2 * (fx * fx * (1 + jx * jx) * largest + kBlur)) return false;
    if (away_y > 0 && away_y * away_y > sigmas2 * (fy * fy * (1 + jy * jy) * largest + kBlur)) return false;

    // covariance on the image: rows e and f of J R Q diag(s)
    const float* axes = scene.axes + 9 * i;
    float we[3], wf[3];
    for (int k = 0; k < 3; ++k) {
        we[k] = float(fx * (m[k] - jx * m[8 + k]));
        wf[k] = float(fy * (m[4 + k] - jy * m[8 + k]));
    }
    double e[3], f[3];
    for (int k = 0; k < 3; ++k) {
        e[k] = we[0] * axes[k] + we[1] * axes[3 + k] + we[2] * axes[6 + k];
        f[k] = wf[0] * axes[k] + wf[1] * axes[3 + k] + wf[2] * axes[6 + k];
    }
    const double g0 = e[1] * f[2] - e[2] * f[1], g1 = e[2] * f[0] - e[0] * f[2], g2 = e[0] * f[1] - e[1] * f[0];
    const double ee = e[0] * e[0] + e[1] * e[1] + e[2] * e[2], ff = f[0] * f[0] + f[1] * f[1] + f[2] * f[2];
    const double ef = e[0] * f[0] + e[1] * f[1] + e[2] * f[2];
    const double sharp = g0 * g0 + g1 * g1 + g2 * g2;  // determinant before the blur, without cancellation
    const double det = sharp + kBlur * (ee + ff) + kBlur * kBlur;
    const double cxx = ee + kBlur, cyy = ff + kBlur;

    float opacity = scene.opacities[i];
    if (view.antialiased) opacity *= max(view.min_compensation, float(sqrt(sharp / det)));
    if (!(opacity >= kCutoff)) return false;
    const float reach = max(log2f(255.0f * opacity), 0.0f);
    const double sigmas = sqrt(2 / kLog2E * reach), rx = sigmas * sqrt(cxx), ry = sigmas * sqrt(cyy);
    double x0 = ceil(u - rx - 0.5 - kSlack), x1 = floor(u + rx - 0.5 + kSlack) + 1;
    double y0 = ceil(v - ry - 0.5 - kSlack), y1 = floor(v + ry - 0.5 + kSlack) + 1;
    if (view.square_reach) {  // pixels there have their centres at whole numbers
        const double mid = 0.5 * (cxx + cyy);
        const double radius = ceil(3 * sqrt(mid + sqrt(max(0.1, mid * mid - det))));
        x0 = max(x0, 16 * floor((u - 0.5 - radius) / 16)), x1 = min(x1, 16 * floor((u + 14.5 + radius) / 16));
        y0 = max(y0, 16 * floor((v - 0.5 - radius) / 16)), y1 = min(y1, 16 * floor((v + 14.5 + radius) / 16));
    }
    x0 = max(x0, 0.0), x1 = min(x1, double(view.width));
    y0 = max(y0, 0.0), y1 = min(y1, double(view.height));
    if (!(x0 < x1 && y0 < y1)) return false;  // also where something overflowed

    out.u = float(u), out.v = float(v), out.z = float(z);
    out.slope = float(ef / cxx);
    out.a = max(float(0.5 * kLog2E * cxx / det), 1e-30f);
    out.c = float(0.5 * kLog2E / cxx);
    out.inv_a = 1 / out.a;
    out.opacity = opacity, out.reach = reach;
    out.bottom_dx = float(sigmas * ef / sqrt(cyy));
    out.x0 = uint16_t(x0), out.x1 = uint16_t(x1), out.y0 = uint16_t(y0), out.y1 = uint16_t(y1);

    float d[3], norm = 0;
    for (int k = 0; k < 3; ++k) d[k] = float(mean[k] - view.centre[k]), norm += d[k] * d[k];
    norm = 1 / max(sqrtf(norm), 1e-30f);
    const auto shade = scene.sh_count == 1   ? colour<1>
                       : scene.sh_count == 4 ? colour<4>
                       : scene.sh_count == 9 ? colour<9>
                                             : colour<16>;
    shade(scene.sh + i * scene.sh_count * 3, d[0] * norm, d[1] * norm, d[2] * norm, &out.red);
    return true;
}

// ---- order ----------------------------------------------------------------------------------------------------------

// Sort by depth, equal depths in the order they come in. The result lies in the array that is returned.
Key* radix_sort(Key* keys, Key* spare, size_t n, uint32_t* starts, int threads) {  // starts [threads, kDigits]
    for (int shift = 0; shift < 32; shift += kRadixBits) {
        const auto digit = [shift](const Key& key) { return (key.depth_bits >> shift) & (kDigits - 1); };
        parallel(threads, [&](int t) {
            uint32_t* counts = starts + t * kDigits;
            memset(counts, 0, kDigits * sizeof *counts);
            for (size_t i = part(n, t, threads); i < part(n, t + 1, threads); ++i) ++counts[digit(keys[i])];
        });
        uint32_t sum = 0;
        for (int d = 0; d < kDigits; ++d)
            for (int t = 0; t < threads; ++t) sum += exchange(starts[t * kDigits + d], sum);
        parallel(threads, [&](int t) {
            uint32_t* start = starts + t * kDigits;
            for (size_t i = part(n, t, threads); i < part(n, t + 1, threads); ++i) spare[start[digit(keys[i])]++] = keys[i];
        });
        Key* sorted = spare;
        spare = keys, keys = sorted;
    }
    return keys;
}

// The rows y0 .. y1 - 1 that the splat's ellipse may touch in the columns x0 .. x1 - 1.
void rows_touched(const Splat& s, int x0, int x1, int& y0, int& y1) {
    const float left = x0 + 0.5f - s.u, right = x1 - 0.5f - s.u;
    const auto edge = [&](float dx, float side) {  // it bulges to the highest and to the lowest point
        dx = clamp(dx, left, right);
        return s.v - 0.5f + s.slope * dx + side * (sqrtf(max(0.0f, (s.reach - s.c * dx * dx) * s.inv_a)) + kSlack);
    };
    y0 = int(ceilf(clamp(edge(-s.bottom_dx, -1), float(s.y0), float(s.y1))));
    y1 = int(floorf(clamp(edge(s.bottom_dx, 1), float(s.y0) - 1, float(s.y1) - 1))) + 1;
}

// Call f(tile) for every tile that the splat may touch.
template <typename F>
void for_tiles(const Splat& s, int tiles_x, F f) {
    const int tx0 = s.x0 / kTile, tx1 = (s.x1 - 1) / kTile;
    const bool tall = s.y0 / kTile != (s.y1 - 1) / kTile;
    for (int tx = tx0; tx <= tx1; ++tx) {
        int y0 = s.y0, y1 = s.y1;
        if (tall && tx0 < tx1) rows_touched(s, max<int>(tx * kTile, s.x0), min<int>(tx * kTile + kTile, s.x1), y0, y1);
        for (int ty = y0 / kTile; ty * kTile < y1; ++ty) f(ty * tiles_x + tx);
    }
}

// ---- blending -------------------------------------------------------------------------------------------------------

inline Lanes load(const float* p) {
    Lanes v;
    memcpy(&v, p, sizeof v);
    return v;
}
inline void store(float* p, Lanes v) { memcpy(p, &v, sizeof v); }
inline Lanes pick(Ints mask, Lanes yes, Lanes no) { return mask ? yes : no; }

inline Lanes exp2_of_negative(Lanes x) {  // -126 < x <= 0: to one unit in the last place; x below: anything
    const Lanes shifted = x + 12582912.0f;  // the nearest whole number stands in the low bits
    const Lanes f = x - (shifted - 12582912.0f);
    Lanes p = 0.00132764718f * f + 0.00967554133f;
    p = p * f + 0.0555071327f;
    p = p * f + 0.240221197f;
    p = p * f + 0.693146967f;
    p = p * f + 1.00000007f;
    return (Lanes)((Ints)p + ((Ints)shifted << 23));
}

// One row of a tile. A finished pixel has its transmittance negated.
struct Row {
    float t[kStride], red[kStride], green[kStride], blue[kStride], depth[kStride], median[kStride];
};

// Blend the splat into kLanes columns of a tile from x on, rows y0 .. y1 - 1 where `live`. Its u and v are the tile's.
inline void blend_columns(Row* rows, const Splat& s, float u, float v, int x, int x1, int y0, int y1, uint32_t live, float max_alpha) {
    Lanes column;
    for (int i = 0; i < kLanes; ++i) column[i] = float(i);
    const Lanes dx = column + (x + 0.5f - u), centre = v - 0.5f + s.slope * dx;
    const Lanes base = pick(column < float(x1 - x), s.c * dx * dx, Lanes{} + 1e30f);
    for (int y = y0; y < y1; ++y) {
        if (!(live >> y & 1)) continue;
        Row& row = rows[y];
        const Lanes dy = float(y) - centre, exponent = s.a * dy * dy + base;
        const Ints seen = exponent <= s.reach;  // alpha is at least the cut-off
        Lanes alpha = s.opacity * exp2_of_negative(-exponent);
        alpha = pick(alpha < max_alpha, alpha, Lanes{} + max_alpha);
        const Lanes t = load(row.t + x), next = t - t * alpha;
        const Ints adds = seen & (next > kStop);  // never where t is negative
        const Lanes weight = pick(adds, alpha * t, Lanes{});
        store(row.red + x, load(row.red + x) + weight * s.red);
        store(row.green + x, load(row.green + x) + weight * s.green);
        store(row.blue + x, load(row.blue + x) + weight * s.blue);
        store(row.depth + x, load(row.depth + x) + weight * s.z);
        const Ints crosses = adds & (t > 0.5f) & (next <= 0.5f);
        store(row.median + x, pick(crosses, Lanes{} + s.z, load(row.median + x)));
        store(row.t + x, pick(adds, next, (Lanes)((Ints)t | (seen & INT32_MIN))));
    }
}

bool alive(const Row& row) {
    Ints any = {};
    for (int x = 0; x < kTile; x += kLanes) any |= load(row.t + x) > 0.0f;
    int32_t sum = 0;
    for (int i = 0; i < kLanes; ++i) sum |= any[i];
    return sum;
}

void blend_tile(const View& view, const Splat* splats, const uint32_t* list, size_t count, int left, int top, Row* rows) {
    const int width = min(kTile, view.width - left), height = min(kTile, view.height - top);
    memset(rows, 0, height * sizeof(Row));
    for (int y = 0; y < height; ++y)
        for (int x = 0; x < kStride; ++x) rows[y].t[x] = x < width ? 1.0f : -1.0f, rows[y].median[x] = NAN;
    uint32_t live = 0xffffffffu >> (32 - height);  // rows with a pixel that is not finished
    for (size_t i = 0; i < count; ++i) {
        if (i % 32 == 31) {
            for (int y = 0; y < height; ++y)
                if ((live >> y & 1) && !alive(rows[y])) live &= ~(1u << y);
            if (!live) break;
        }
        const Splat& s = splats[list[i]];
        const int x0 = max(0, s.x0 - left), x1 = min(kTile, s.x1 - left);
        for (int x = x0; x < x1; x += kLanes) {
            int y0 = s.y0, y1 = s.y1;
            if (x1 - x0 > kLanes) rows_touched(s, left + x, left + min(x + kLanes, x1), y0, y1);
            blend_columns(rows, s, s.u - left, s.v - top, x, x1, max(0, y0 - top), min(kTile, y1 - top), live, view.max_alpha);
        }
    }
}

void write_tile(const View& view, const Picture& out, int left, int top, const Row* rows) {
    const int width = min(kTile, view.width - left), height = min(kTile, view.height - top);
    for (int y = 0; y < height; ++y) {
        const Row& row = rows[y];
        const size_t at = size_t(top + y) * view.width + left;
        for (int x = 0; x < width; ++x) {
            const float t = fabsf(row.t[x]), alpha = 1 - t;
            out.rgb[3 * (at + x)] = row.red[x] + t * view.background[0];
            out.rgb[3 * (at + x) + 1] = row.green[x] + t * view.background[1];
            out.rgb[3 * (at + x) + 2] = row.blue[x] + t * view.background[2];
            out.alpha[at + x] = alpha;
            out.depth[at + x] = row.depth[x] / max(alpha, 1e-10f);
            out.median[at + x] = row.median[x];
        }
    }
}

struct Scratch {
    Buffer<Splat> projected, sorted;
    Buffer<Key> keys, spare;
    Buffer<uint32_t> digits, lists;
    Buffer<size_t> blocks, fill, ends;
};

}  // namespace

// ---- the interface --------------------------------------------------------------------------------------------------

extern "C" void* longtake_new_scratch() { return calloc(1, sizeof(Scratch)); }

extern "C" void longtake_free_scratch(void* scratch) {
    if (scratch) static_cast<Scratch*>(scratch)->~Scratch();
    free(scratch);
}

// Draw one picture. One call at a time for a scratch. 0, or 1 where memory ran out.
extern "C" int longtake_draw(void* memory, const Scene* scene_p, const View* view_p, const Picture* out_p) {
    if (!memory) return 1;
    Scratch& scratch = *static_cast<Scratch*>(memory);
    const Scene& scene = *scene_p;
    const View& view = *view_p;
    const int threads = clamp(view.threads, 1, kMaxThreads);
    const size_t count = scene.count, blocks = (count + kBlock - 1) / kBlock;
    const int tiles_x = (view.width + kTile - 1) / kTile, tiles_y = (view.height + kTile - 1) / kTile;
    const size_t tiles = size_t(tiles_x) * tiles_y;
    if (!(scratch.projected.grow(count) && scratch.keys.grow(count) && scratch.spare.grow(count) &&
          scratch.blocks.grow(blocks + 1) && scratch.digits.grow(size_t(threads) * kDigits) &&
          scratch.fill.grow(threads * tiles) && scratch.ends.grow(tiles + 1)))
        return 1;

    // project block by block, then close the gaps that the invisible left
    Splat* projected = scratch.projected.data;
    Key *keys = scratch.keys.data, *spare = scratch.spare.data;
    size_t* starts = scratch.blocks.data;
    size_t next = 0;
    parallel(threads, [&](int) {
        for (size_t b; (b = __atomic_fetch_add(&next, 1, __ATOMIC_RELAXED)) < blocks;) {
            size_t to = b * kBlock;
            for (size_t i = to; i < min(count, (b + 1) * kBlock); ++i) {
                if (!project(scene, view, i, projected[to])) continue;
                memcpy(&spare[to].depth_bits, &projected[to].z, 4);
                spare[to].source = uint32_t(to);
                ++to;
            }
            starts[b + 1] = to - b * kBlock;
        }
    });
    starts[0] = 0;
    for (size_t b = 0; b < blocks; ++b) starts[b + 1] += starts[b];
    const size_t visible = starts[blocks];
    parallel(threads, [&](int t) {
        for (size_t b = part(blocks, t, threads); b < part(blocks, t + 1, threads); ++b)
            memcpy(keys + starts[b], spare + b * kBlock, (starts[b + 1] - starts[b]) * sizeof(Key));
    });
    keys = radix_sort(keys, spare, visible, scratch.digits.data, threads);

    // bin: count, add up, fill; a thread has a contiguous part of the depth order, so every list comes out in order
    if (!scratch.sorted.grow(visible)) return 1;
    Splat* splats = scratch.sorted.data;
    size_t *fill = scratch.fill.data, *ends = scratch.ends.data;
    parallel(threads, [&](int t) {
        size_t* counts = fill + t * tiles;
        memset(counts, 0, tiles * sizeof *counts);
        for (size_t i = part(visible, t, threads), end = part(visible, t + 1, threads); i < end; ++i) {
            __builtin_prefetch(&projected[keys[min(i + 16, end - 1)].source]);
            splats[i] = projected[keys[i].source];
            for_tiles(splats[i], tiles_x, [&](int tile) { ++counts[tile]; });
        }
    });
    size_t sum = 0;
    ends[0] = 0;
    for (size_t tile = 0; tile < tiles; ++tile) {
        for (int t = 0; t < threads; ++t) sum += exchange(fill[t * tiles + tile], sum);
        ends[tile + 1] = sum;
    }
    if (!scratch.lists.grow(sum)) return 1;
    uint32_t* lists = scratch.lists.data;
    parallel(threads, [&](int t) {
        for (size_t i = part(visible, t, threads); i < part(visible, t + 1, threads); ++i)
            for_tiles(splats[i], tiles_x, [&](int tile) { lists[fill[t * tiles + tile]++] = uint32_t(i); });
    });

    next = 0;
    parallel(threads, [&](int) {
        alignas(64) Row rows[kTile];
        for (size_t tile; (tile = __atomic_fetch_add(&next, 1, __ATOMIC_RELAXED)) < tiles;) {
            const int left = int(tile % tiles_x) * kTile, top = int(tile / tiles_x) * kTile;
            blend_tile(view, splats, lists + ends[tile], ends[tile + 1] - ends[tile], left, top, rows);
            write_tile(view, *out_p, left, top, rows);
        }
    });
    return 0;
}
