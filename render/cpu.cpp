// 3D Gaussians to pixels on the CPU: project, sort by depth, bin to tiles, blend. Same semantics as reference.py.
//
// A plain C interface, loaded by cpu.py, which also compiles it. Splat convention: the centre of pixel (row i, column j)
// is (j + 0.5, i + 0.5). Vectors are GCC's and Clang's own, so one source serves every instruction set.

#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <memory>
#include <new>
#include <system_error>
#include <thread>
#include <utility>
#include <vector>

namespace {

constexpr float kCutoff = 1.0f / 255.0f;  // a smaller alpha is skipped
constexpr float kStop = 1e-4f;            // a pixel whose transmittance would fall to this is finished
constexpr float kBlur = 0.3f;             // variance in pixels^2 that every splat gains on the image
constexpr float kSlack = 1e-3f;           // pixels by which spans are widened; the cut-off decides inside them
constexpr double kLog2E = 1.4426950408889634;
constexpr int kTile = 32;    // pixels, both ways
#if defined(__AVX2__)
constexpr int kLanes = 8;  // pixels blended at once
#else
constexpr int kLanes = 4;
#endif
constexpr int kStride = kTile + kLanes;  // a vector may begin at a tile's last column
constexpr int kBlock = 2048;             // Gaussians projected at a time
constexpr int kRadixBits = 11;

typedef float Lanes __attribute__((vector_size(4 * kLanes)));
typedef int32_t Ints __attribute__((vector_size(4 * kLanes)));
#if defined(__AVX2__)
constexpr Lanes kIota = {0, 1, 2, 3, 4, 5, 6, 7};
#else
constexpr Lanes kIota = {0, 1, 2, 3};
#endif

}  // namespace

extern "C" {

struct Scene {
    int64_t count;
    int32_t sh_count;        // coefficients a channel: 1, 4, 9 or 16
    const float* means;      // [count, 3]
    const float* axes;       // [count, 3, 3] rotation times diag(scale)
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

// A Gaussian on the image, one cache line. alpha(x, y) = opacity 2^-(a (x - xc)^2 + c dy^2), with dy = y - v and
// xc = u + slope dy: the conic's square completed, which is never negative, however thin the splat.
struct alignas(64) Splat {
    float u, v, slope, a, c, opacity;
    float red, green, blue, z;
    float reach;    // log2(255 opacity): where the exponent passes it, alpha is below the cut-off
    float inv_a;
    float right_dy;  // dy of the ellipse's rightmost point; minus that is the leftmost's
    uint16_t x0, x1, y0, y1;  // pixels that it may touch, upper ends excluded
};

struct Key {
    uint32_t depth_bits;  // of a positive float: they sort as the float does
    uint32_t source;
};

template <typename T>
struct Buffer {  // memory that is kept from frame to frame
    std::unique_ptr<T[]> data;
    size_t size = 0;
    T* grown(size_t n) {
        if (n > size) data.reset(), data.reset(new T[n]), size = n;
        return data.get();
    }
};

template <typename F>
void parallel(int threads, F&& work) {  // work(thread), one of them here
    std::vector<std::thread> others;
    for (int i = 1; i < threads; ++i) try {
            others.emplace_back(work, i);
        } catch (const std::system_error&) {  // no more threads to be had
            work(i);
        }
    work(0);
    for (auto& other : others) other.join();
}

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
        rgb[channel] = std::max(0.0f, sum);
    }
}

// The Gaussian's splat; false where it shows nothing.
bool project(const Scene& scene, const View& view, int64_t i, Splat& out) {
    const float* mean = scene.means + 3 * i;
    const double* m = view.cam_from_world;
    const double z = m[8] * mean[0] + m[9] * mean[1] + m[10] * mean[2] + m[11];
    if (!(z >= view.near && z <= view.far)) return false;
    const double x = (m[0] * mean[0] + m[1] * mean[1] + m[2] * mean[2] + m[3]) / z;
    const double y = (m[4] * mean[0] + m[5] * mean[1] + m[6] * mean[2] + m[7]) / z;
    const double u = view.fx * x + view.cx, v = view.fy * y + view.cy;

    // covariance on the image: rows e and f of J R Q diag(s)
    const double jx = std::min(std::max(x, view.slope_min[0]), view.slope_max[0]);
    const double jy = std::min(std::max(y, view.slope_min[1]), view.slope_max[1]);
    const double fx = view.fx / z, fy = view.fy / z;
    const float* axes = scene.axes + 9 * i;
    float e[3], f[3];
    float we[3], wf[3];
    for (int k = 0; k < 3; ++k) {
        we[k] = float(fx * (m[k] - jx * m[8 + k]));
        wf[k] = float(fy * (m[4 + k] - jy * m[8 + k]));
    }
    for (int k = 0; k < 3; ++k) {
        e[k] = we[0] * axes[k] + we[1] * axes[3 + k] + we[2] * axes[6 + k];
        f[k] = wf[0] * axes[k] + wf[1] * axes[3 + k] + wf[2] * axes[6 + k];
    }
    const double g0 = double(e[1]) * f[2] - double(e[2]) * f[1], g1 = double(e[2]) * f[0] - double(e[0]) * f[2],
                 g2 = double(e[0]) * f[1] - double(e[1]) * f[0];
    const double ee = double(e[0]) * e[0] + double(e[1]) * e[1] + double(e[2]) * e[2];
    const double ff = double(f[0]) * f[0] + double(f[1]) * f[1] + double(f[2]) * f[2];
    const double ef = double(e[0]) * f[0] + double(e[1]) * f[1] + double(e[2]) * f[2];
    const double sharp = g0 * g0 + g1 * g1 + g2 * g2;  // determinant before the blur, without cancellation
    const double det = sharp + kBlur * (ee + ff) + kBlur * kBlur;
    const double cxx = ee + kBlur, cyy = ff + kBlur;

    float opacity = scene.opacities[i];
    if (view.antialiased) opacity *= std::max(view.min_compensation, float(std::sqrt(sharp / det)));
    if (!(opacity >= kCutoff)) return false;
    const float reach = std::log2(255.0f * opacity);
    const double sigmas = std::sqrt(2 / kLog2E * std::max(reach, 0.0f));
    const double rx = sigmas * std::sqrt(cxx), ry = sigmas * std::sqrt(cyy);
    double x0 = std::ceil(u - rx - 0.5 - kSlack), x1 = std::floor(u + rx - 0.5 + kSlack) + 1;
    double y0 = std::ceil(v - ry - 0.5 - kSlack), y1 = std::floor(v + ry - 0.5 + kSlack) + 1;
    if (view.square_reach) {  // pixels there have their centres at whole numbers
        const double mid = 0.5 * (cxx + cyy), radius = std::ceil(3 * std::sqrt(mid + std::sqrt(std::max(0.1, mid * mid - det))));
        x0 = std::max(x0, 16 * std::floor((u - 0.5 - radius) / 16)), x1 = std::min(x1, 16 * std::floor((u + 14.5 + radius) / 16));
        y0 = std::max(y0, 16 * std::floor((v - 0.5 - radius) / 16)), y1 = std::min(y1, 16 * std::floor((v + 14.5 + radius) / 16));
    }
    x0 = std::max(x0, 0.0), x1 = std::min(x1, double(view.width));
    y0 = std::max(y0, 0.0), y1 = std::min(y1, double(view.height));
    if (!(x0 < x1 && y0 < y1)) return false;  // also where something overflowed

    out.u = float(u), out.v = float(v), out.z = float(z);
    out.slope = float(ef / cyy);
    out.a = std::max(float(0.5 * kLog2E * cyy / det), 1e-30f);
    out.c = float(0.5 * kLog2E / cyy);
    out.inv_a = 1 / out.a;
    out.opacity = opacity, out.reach = reach;
    out.right_dy = float(sigmas * ef / std::sqrt(cxx));
    out.x0 = uint16_t(x0), out.x1 = uint16_t(x1), out.y0 = uint16_t(y0), out.y1 = uint16_t(y1);

    const float dx = float(mean[0] - view.centre[0]), dy = float(mean[1] - view.centre[1]), dz = float(mean[2] - view.centre[2]);
    const float norm = 1 / std::max(std::sqrt(dx * dx + dy * dy + dz * dz), 1e-30f);
    const float* sh = scene.sh + i * scene.sh_count * 3;
    const auto shade = scene.sh_count == 1 ? colour<1> : scene.sh_count == 4 ? colour<4> : scene.sh_count == 9 ? colour<9> : colour<16>;
    shade(sh, dx * norm, dy * norm, dz * norm, &out.red);
    return true;
}

// ---- order ----------------------------------------------------------------------------------------------------------

// Sort by depth, equal depths in the order they come in. The result lies in the buffer that is returned.
Key* radix_sort(Key* keys, Key* spare, size_t n, int threads) {
    constexpr int kDigits = 1 << kRadixBits;
    std::vector<std::vector<uint32_t>> starts(threads, std::vector<uint32_t>(kDigits));
    for (int shift = 0; shift < 32; shift += kRadixBits) {
        const auto digit = [shift](const Key& key) { return (key.depth_bits >> shift) & (kDigits - 1); };
        parallel(threads, [&](int t) {
            std::fill(starts[t].begin(), starts[t].end(), 0);
            for (size_t i = part(n, t, threads); i < part(n, t + 1, threads); ++i) ++starts[t][digit(keys[i])];
        });
        uint32_t sum = 0;
        for (int d = 0; d < kDigits; ++d)
            for (int t = 0; t < threads; ++t) sum += std::exchange(starts[t][d], sum);
        parallel(threads, [&](int t) {
            uint32_t* start = starts[t].data();
            for (size_t i = part(n, t, threads); i < part(n, t + 1, threads); ++i) spare[start[digit(keys[i])]++] = keys[i];
        });
        std::swap(keys, spare);
    }
    return keys;
}

// Call f(tile) for every tile that the splat's ellipse (or its box, a little larger) reaches.
template <typename F>
void for_tiles(const Splat& s, int tiles_x, F&& f) {
    const int tx0 = s.x0 / kTile, tx1 = (s.x1 - 1) / kTile, ty0 = s.y0 / kTile, ty1 = (s.y1 - 1) / kTile;
    for (int ty = ty0; ty <= ty1; ++ty) {
        int from = tx0, to = tx1;
        if (tx0 < tx1 && ty0 < ty1) {
            // the ellipse's part in this band of rows: its edges bulge to the rightmost and the leftmost point
            const float top = std::max<int>(ty * kTile, s.y0) + 0.5f - s.v;
            const float bottom = std::min<int>(ty * kTile + kTile, s.y1) - 0.5f - s.v;
            const auto edge = [&](float dy, float side) {
                dy = std::min(std::max(dy, top), bottom);
                const float x = s.u + s.slope * dy + side * (std::sqrt(std::max(0.0f, (s.reach - s.c * dy * dy) * s.inv_a)) + kSlack);
                return std::min(std::max(x, float(s.x0)), float(s.x1 - 1));
            };
            from = int(edge(-s.right_dy, -1)) / kTile, to = int(edge(s.right_dy, 1)) / kTile;
        }
        for (int tx = from; tx <= to; ++tx) f(ty * tiles_x + tx);
    }
}

// ---- blending -------------------------------------------------------------------------------------------------------

inline Lanes load(const float* p) {
    Lanes v;
    std::memcpy(&v, p, sizeof v);
    return v;
}
inline void store(float* p, Lanes v) { std::memcpy(p, &v, sizeof v); }
inline Lanes pick(Ints mask, Lanes yes, Lanes no) { return mask ? yes : no; }

inline Lanes exp2_of_negative(Lanes x) {  // for -126 < x <= 0, to one unit in the last place
    const Lanes shifted = x + 12582912.0f;  // the nearest whole number stands in the low bits
    const Lanes f = x - (shifted - 12582912.0f);
    const Lanes p = ((((0.00132764718f * f + 0.00967554133f) * f + 0.0555071327f) * f + 0.240221197f) * f + 0.693146967f) * f + 1.00000007f;
    return (Lanes)((Ints)p + ((Ints)shifted << 23));
}

// One row of a tile. A finished pixel has its transmittance negated.
struct Row {
    float t[kStride], red[kStride], green[kStride], blue[kStride], depth[kStride], median[kStride];
};

template <bool BOXED>
inline void blend_row(Row& row, const Splat& s, float xc, float drop, int from, int to, float max_alpha) {
    for (int x = from; x < to; x += kLanes) {
        const Lanes dx = kIota + (float(x) + 0.5f - xc);
        const Lanes exponent = -(s.a * dx * dx + drop);
        const Lanes bounded = pick(exponent > -100.0f, exponent, Lanes{} - 100.0f);
        Lanes alpha = s.opacity * exp2_of_negative(bounded);
        alpha = pick(alpha < max_alpha, alpha, Lanes{} + max_alpha);
        const Lanes t = load(row.t + x);
        const Lanes next = t * (1.0f - alpha);
        Ints seen = alpha >= kCutoff;
        if (BOXED) seen &= kIota < float(to - x);
        const Ints adds = seen & (next > kStop);  // never where t is negative
        const Lanes weight = pick(adds, alpha * t, Lanes{});
        const Lanes stopped = (Lanes)((Ints)t | (seen & INT32_MIN));
        store(row.red + x, load(row.red + x) + weight * s.red);
        store(row.green + x, load(row.green + x) + weight * s.green);
        store(row.blue + x, load(row.blue + x) + weight * s.blue);
        store(row.depth + x, load(row.depth + x) + weight * s.z);
        const Ints crosses = adds & (t > 0.5f) & (next <= 0.5f);
        store(row.median + x, pick(crosses, Lanes{} + s.z, load(row.median + x)));
        store(row.t + x, pick(adds, next, stopped));
    }
}

template <bool BOXED>
void blend_tile(const View& view, const Splat* splats, const uint32_t* begin, const uint32_t* end, int left, int top, Row* rows) {
    const int width = std::min(kTile, view.width - left), height = std::min(kTile, view.height - top);
    for (int y = 0; y < height; ++y) {
        std::memset(&rows[y], 0, sizeof(Row));
        for (int x = 0; x < kStride; ++x) rows[y].t[x] = x < width ? 1.0f : -1.0f, rows[y].median[x] = NAN;
    }
    uint32_t live = height == 32 ? ~0u : (1u << height) - 1;  // rows with a pixel that is not finished
    for (const uint32_t* at = begin; at < end; ++at) {
        if ((at - begin) % 32 == 31) {
            for (int y = 0; y < height; ++y) {
                if (!(live >> y & 1)) continue;
                Ints any = {};
                for (int x = 0; x < kTile; x += kLanes) any |= load(rows[y].t + x) > 0.0f;
                bool alive = false;
                for (int lane = 0; lane < kLanes; ++lane) alive |= any[lane] != 0;
                if (!alive) live &= ~(1u << y);
            }
            if (!live) break;
        }
        const Splat& s = splats[*at];
        const float u = s.u - left, v = s.v - top;
        const int x0 = std::max(0, s.x0 - left), x1 = std::min(kTile, s.x1 - left);
        const int y0 = std::max(0, s.y0 - top), y1 = std::min(kTile, s.y1 - top);
        for (int y = y0; y < y1; ++y) {
            if (!(live >> y & 1)) continue;
            const float dy = y + 0.5f - v, drop = s.c * dy * dy, xc = u + s.slope * dy;
            int from = x0, to = x1;
            if (x1 - x0 > kLanes) {
                const float rest = s.reach - drop;
                if (rest < 0) continue;
                const float half = std::sqrt(rest * s.inv_a) + kSlack;
                from = int(std::ceil(std::max(xc - half - 0.5f, float(x0))));
                to = int(std::floor(std::min(xc + half - 0.5f, float(x1 - 1)))) + 1;
            }
            blend_row<BOXED>(rows[y], s, xc, drop, from, to, view.max_alpha);
        }
    }
}

void write_tile(const View& view, const Picture& out, int left, int top, const Row* rows) {
    const int width = std::min(kTile, view.width - left), height = std::min(kTile, view.height - top);
    for (int y = 0; y < height; ++y) {
        const Row& row = rows[y];
        const size_t at = size_t(top + y) * view.width + left;
        for (int x = 0; x < width; ++x) {
            const float t = std::abs(row.t[x]), alpha = 1 - t;
            out.rgb[3 * (at + x)] = row.red[x] + t * view.background[0];
            out.rgb[3 * (at + x) + 1] = row.green[x] + t * view.background[1];
            out.rgb[3 * (at + x) + 2] = row.blue[x] + t * view.background[2];
            out.alpha[at + x] = alpha;
            out.depth[at + x] = row.depth[x] / std::max(alpha, 1e-10f);
            out.median[at + x] = row.median[x];
        }
    }
}

struct Scratch {
    Buffer<Splat> projected, sorted;
    Buffer<Key> keys, spare;
    Buffer<uint32_t> tile_lists;
};

}  // namespace

// ---- the interface --------------------------------------------------------------------------------------------------

extern "C" void* longtake_new_scratch() { return new Scratch; }
extern "C" void longtake_free_scratch(void* scratch) { delete static_cast<Scratch*>(scratch); }

// Draw one picture. One call at a time for a scratch. 0, or 1 where memory ran out.
extern "C" int longtake_draw(void* memory, const Scene* scene_p, const View* view_p, const Picture* out_p) try {
    Scratch& scratch = *static_cast<Scratch*>(memory);
    const Scene& scene = *scene_p;
    const View& view = *view_p;
    const int threads = view.threads;
    const size_t count = scene.count, blocks = (count + kBlock - 1) / kBlock;

    Splat* projected = scratch.projected.grown(count);
    std::vector<size_t> starts(blocks + 1);
    std::atomic<size_t> next{0};
    Key* spare = scratch.spare.grown(count);
    parallel(threads, [&](int) {
        for (size_t b; (b = next++) < blocks;) {
            size_t to = b * kBlock;
            for (size_t i = to; i < std::min(count, (b + 1) * kBlock); ++i) {
                if (!project(scene, view, i, projected[to])) continue;
                std::memcpy(&spare[to].depth_bits, &projected[to].z, 4);
                spare[to].source = uint32_t(to);
                ++to;
            }
            starts[b + 1] = to - b * kBlock;
        }
    });
    for (size_t b = 0; b < blocks; ++b) starts[b + 1] += starts[b];
    const size_t visible = starts[blocks];
    Key* keys = scratch.keys.grown(count);
    parallel(threads, [&](int t) {
        for (size_t b = part(blocks, t, threads); b < part(blocks, t + 1, threads); ++b)
            std::memcpy(keys + starts[b], spare + b * kBlock, (starts[b + 1] - starts[b]) * sizeof(Key));
    });
    keys = radix_sort(keys, spare, visible, threads);

    // bin: count, add up, fill; a thread has a contiguous part of the depth order, so every list comes out in order
    const int tiles_x = (view.width + kTile - 1) / kTile, tiles_y = (view.height + kTile - 1) / kTile;
    const size_t tiles = size_t(tiles_x) * tiles_y;
    Splat* splats = scratch.sorted.grown(visible);
    std::vector<std::vector<size_t>> fill(threads, std::vector<size_t>(tiles));
    parallel(threads, [&](int t) {
        for (size_t i = part(visible, t, threads); i < part(visible, t + 1, threads); ++i) {
            splats[i] = projected[keys[i].source];
            for_tiles(splats[i], tiles_x, [&](int tile) { ++fill[t][tile]; });
        }
    });
    std::vector<size_t> ends(tiles + 1);
    size_t sum = 0;
    for (size_t tile = 0; tile < tiles; ++tile) {
        for (int t = 0; t < threads; ++t) sum += std::exchange(fill[t][tile], sum);
        ends[tile + 1] = sum;
    }
    uint32_t* lists = scratch.tile_lists.grown(sum);
    parallel(threads, [&](int t) {
        for (size_t i = part(visible, t, threads); i < part(visible, t + 1, threads); ++i)
            for_tiles(splats[i], tiles_x, [&](int tile) { lists[fill[t][tile]++] = uint32_t(i); });
    });

    next = 0;
    parallel(threads, [&](int) {
        alignas(64) Row rows[kTile];
        for (size_t tile; (tile = next++) < tiles;) {
            const int left = int(tile % tiles_x) * kTile, top = int(tile / tiles_x) * kTile;
            const auto blend = view.square_reach ? blend_tile<true> : blend_tile<false>;
            blend(view, splats, lists + ends[tile], lists + ends[tile + 1], left, top, rows);
            write_tile(view, *out_p, left, top, rows);
        }
    });
    return 0;
} catch (const std::bad_alloc&) {
    return 1;
}
