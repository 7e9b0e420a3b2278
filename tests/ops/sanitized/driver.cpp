// Runs the row kernels over dtypes, widths, strides and tables: by one thread, and by three, which must give the same
// bits. What it is compiled with (tests/ops/sanitized/__init__.py) watches every access.
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <random>
#include <string>
#include <thread>
#include <vector>

#include "rows.hpp"
#include "shares.hpp"

using namespace emosteer;

namespace {

constexpr std::int64_t kRows = 6, kDirections = 5, kTeam = 3;
constexpr std::int64_t kWidths[] = {1, 7, 16, 33, 200};

const Kernels& kernels = best_kernels();
std::mt19937 chance(7);
long calls = 0;

std::vector<float> numbers(std::int64_t n, float scale = 1) {
  std::normal_distribution<float> normal(0, scale);
  std::vector<float> found(n);
  for (float& x : found) x = normal(chance);
  return found;
}

std::int64_t size_of(Dtype dtype) { return dtype == Dtype::f32 ? 4 : 2; }

// Numbers in a format, as bytes. Of float16 a sign, an exponent near 0 and any fraction.
std::vector<std::uint8_t> encoded(Dtype dtype, std::int64_t n, float scale) {
  const std::vector<float> plain = numbers(n, scale);
  std::vector<std::uint8_t> bytes(n * size_of(dtype));
  for (std::int64_t i = 0; i < n; ++i) {
    std::uint32_t word;
    std::memcpy(&word, &plain[i], 4);
    const std::uint16_t half = dtype == Dtype::bf16
                                   ? static_cast<std::uint16_t>(word >> 16)
                                   : static_cast<std::uint16_t>((chance() & 0x83ffu) | ((11u + chance() % 5u) << 10));
    if (dtype == Dtype::f32)
      std::memcpy(&bytes[4 * i], &word, 4);
    else
      std::memcpy(&bytes[2 * i], &half, 2);
  }
  return bytes;
}

// kRows rows: dense, with a gap behind each, or in two strides; from an address that only elements are aligned to.
struct Matrix {
  std::vector<std::uint8_t> bytes;
  RowView view;
  Matrix(Dtype dtype, std::int64_t dim, int layout, float scale = 1) {
    const std::int64_t item = size_of(dtype), line = layout == 0 ? dim : dim + 3;
    const std::int64_t inner = layout == 2 ? 2 : 1, outer = layout == 2 ? 3 * line : line;
    bytes = encoded(dtype, 1 + (kRows / inner - 1) * outer + (inner - 1) * line + dim, scale);
    view = {0, inner, outer * item, line * item};
    start = item;
    aim();
  }
  Matrix(const Matrix& other) : bytes(other.bytes), view(other.view), start(other.start) { aim(); }

 private:
  std::int64_t start;
  void aim() { view.data = reinterpret_cast<std::uintptr_t>(bytes.data()) + static_cast<std::uintptr_t>(start); }
};

template <class Args>
void run(void (*kernel)(const Args&, std::int64_t, std::int64_t), const Args& args, std::int64_t count,
         std::int64_t team) {
  ++calls;
  if (team == 1) return kernel(args, 0, count);
  std::vector<std::thread> threads;
  for (std::int64_t rank = 0; rank < team; ++rank)
    threads.emplace_back([=, &args] {
      const Share mine = share_of(count, rank, team);
      kernel(args, mine.begin, mine.end);
    });
  for (std::thread& one : threads) one.join();
}

void same(const void* a, const void* b, std::size_t size, const char* what) {
  if (std::memcmp(a, b, size) == 0) return;
  std::fprintf(stderr, "%s: three threads give other bits than one\n", what);
  std::exit(1);
}
void same(const Matrix& a, const Matrix& b, const char* what) {
  same(a.bytes.data(), b.bytes.data(), a.bytes.size(), what);
}
template <class T>
void same(const std::vector<T>& a, const std::vector<T>& b, const char* what) {
  same(a.data(), b.data(), a.size() * sizeof(T), what);
}

// Three programs of up to three slots, of one kind.
struct Programs {
  std::vector<std::int32_t> direction;
  std::vector<float> strength, low, high, rotate;
  std::vector<std::uint8_t> preserve, relative;
  Programs(int kind, int slots) {
    for (int i = 0; i < 3 * slots; ++i) {
      direction.push_back(i % slots && chance() % 4 == 0 ? -1 : static_cast<std::int32_t>(i % kDirections));
      strength.push_back(kind == 0 ? 0.5f : 0);
      low.push_back(kind == 1 ? 0.1f : -HUGE_VALF);
      high.push_back(kind == 1 ? 0.2f : HUGE_VALF);
      rotate.push_back(kind == 2 ? 0.7f : 0);
    }
    for (int r = 0; r < 3; ++r) {
      preserve.push_back(static_cast<std::uint8_t>(r));
      relative.push_back(static_cast<std::uint8_t>(r == 1));
    }
  }
  Table table() const {
    return {3,
            static_cast<std::int64_t>(direction.size()) / 3,
            direction.data(),
            strength.data(),
            low.data(),
            high.data(),
            rotate.data(),
            preserve.data(),
            relative.data(),
            static_cast<std::int64_t>(direction.size()) / 3,
            1};
  }
};

void steering(Dtype dtype, std::int64_t dim, int layout, float scale) {
  const std::vector<float> directions = numbers(kDirections * dim, 1 / std::sqrt(static_cast<float>(dim)));
  const std::vector<std::int32_t> some = {2, -1, 0, 0, 0, 1};
  const Matrix x(dtype, dim, layout, scale), residual(dtype, dim, (layout + 1) % 3, scale), weight(Dtype::bf16, dim, 0);
  for (int kind = 0; kind < 3; ++kind)
    for (int slots = 1; slots <= 3; slots += 2)
      for (int form = 0; form < 8; ++form) {
        const Programs programs(kind, slots);
        const Table table = programs.table();
        Matrix in_place[2] = {x, x}, normed[2] = {Matrix(x), Matrix(x)};
        for (int team = 0; team < 2; ++team) {
          SteerArgs args{};
          args.dtype = dtype;
          args.count = kRows;
          args.dim = dim;
          args.x = args.out = in_place[team].view;
          if (form & 1) args.residual = residual.view;
          if (form & 2) {
            args.normed = normed[team].view;
            args.weight = weight.view.data;
            args.weight_dtype = Dtype::bf16;
          }
          args.eps = 1e-6f;
          args.directions = directions.data();
          args.n_directions = kDirections;
          args.table = &table;
          if (form & 4) args.token_row = some.data();
          args.scale = scale;
          run(kernels.steer, args, kRows, team ? kTeam : 1);
        }
        same(in_place[0], in_place[1], "steer");
        same(normed[0], normed[1], "the norm after steering");
      }
}

void norms(Dtype dtype, std::int64_t dim, int layout, float scale) {
  const Matrix x(dtype, dim, layout, scale), weight(Dtype::f16, dim, 0);
  Matrix out[2] = {Matrix(x), Matrix(x)};
  for (int team = 0; team < 2; ++team) {
    const NormArgs args{dtype, Dtype::f16, dim, x.view, out[team].view, weight.view.data, 1e-6f, 1};
    run(kernels.rms_norm, args, kRows, team ? kTeam : 1);
  }
  same(out[0], out[1], "rms_norm");
}

void projections(Dtype dtype, std::int64_t dim, int layout, float scale) {
  const Matrix x(dtype, dim, layout, scale);
  const std::vector<float> directions = numbers(kDirections * dim), center = numbers(dim);
  for (int form = 0; form < 8; ++form) {
    std::vector<float> dots[2], rows[2], lengths[2];
    for (int team = 0; team < 2; ++team) {
      dots[team].resize(kRows * kDirections);
      rows[team].resize(kRows * dim);
      lengths[team].resize(kRows);
      const ProjectArgs args{dtype,
                             dim,
                             kDirections,
                             x.view,
                             directions.data(),
                             form & 1 ? center.data() : nullptr,
                             (form & 2) != 0,
                             dots[team].data(),
                             form & 4 ? rows[team].data() : nullptr,
                             form & 4 ? lengths[team].data() : nullptr};
      run(kernels.project, args, kRows, team ? kTeam : 1);
    }
    same(dots[0], dots[1], "project");
    same(rows[0], rows[1], "the rows about a centre");
    same(lengths[0], lengths[1], "the rows' norms");
  }
}

void moments(Dtype dtype, std::int64_t dim, int layout) {
  const Matrix x(dtype, dim, layout);
  const std::vector<std::int32_t> group = {0, 1, -1, 1, 0, 0};
  const std::vector<float> weight = {1, 0.5f, 1, 0, 2, 1};
  const std::vector<double> shift(dim, 0.25);
  for (int form = 0; form < 8; ++form) {
    std::vector<double> sum[2];
    std::vector<float> rows[2];
    for (int team = 0; team < 2; ++team) {
      sum[team].resize(2 * dim);
      rows[team].resize(kRows * (dim + 1));
      const MomentArgs args{dtype,
                            kRows,
                            dim,
                            x.view,
                            form & 1 ? group.data() : nullptr,
                            form & 2 ? weight.data() : nullptr,
                            shift.data(),
                            sum[team].data(),
                            form & 4 ? rows[team].data() : nullptr,
                            dim + 1};
      run(kernels.moments, args, dim, team ? kTeam : 1);
    }
    same(sum[0], sum[1], "sums of groups");
    same(rows[0], rows[1], "rows about the shift");
  }
}

}  // namespace

int main() {
  for (const Dtype dtype : {Dtype::f32, Dtype::bf16, Dtype::f16})
    for (const std::int64_t dim : kWidths)
      for (int layout = 0; layout < 3; ++layout) {
        for (const float scale : {1.f, 1e25f, 1e-25f}) {  // the last two: sums that overflow or vanish
          steering(dtype, dim, layout, scale);
          norms(dtype, dim, layout, scale);
          projections(dtype, dim, layout, scale);
        }
        moments(dtype, dim, layout);
      }
  std::printf("%ld calls\n", calls);
}
