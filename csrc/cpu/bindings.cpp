// The Python module emosteer._cpu: checks what only the values can tell, then runs the row kernels.
//
// Shapes, dtypes and strides were checked by the caller; indices and strengths are checked here,
// before anything is written, so that no value of theirs reaches outside a tensor.
#include <omp.h>
#include <pybind11/pybind11.h>

#include <cmath>
#include <stdexcept>
#include <string>

#include "rows.hpp"
#include "shares.hpp"

namespace py = pybind11;
using namespace emosteer;

namespace {

// Below this many elements a second thread costs more than it brings, and so does releasing the GIL.
constexpr std::int64_t kSerial = 32768;

const Kernels* kernels = nullptr;  // chosen when the module loads

template <class Body>
void in_parallel(std::int64_t count, std::int64_t elements, const Body& body) {
  const int threads = elements <= kSerial ? 1 : static_cast<int>(std::min<std::int64_t>(omp_get_max_threads(), count));
  if (threads <= 1) return body(0, count);
  py::gil_scoped_release release;
#pragma omp parallel num_threads(threads)
  {
    // The team may be smaller than asked for.
    const Share mine = share_of(count, omp_get_thread_num(), omp_get_num_threads());
    body(mine.begin, mine.end);
  }
}

template <class T>
const T* pointer(std::uintptr_t address) {
  return reinterpret_cast<const T*>(address);
}

std::string place(const char* name, std::int64_t r, std::int64_t s = -1) {
  return std::string(name) + "[" + std::to_string(r) + (s < 0 ? "" : ", " + std::to_string(s)) + "]";
}

void check_table(const Table& table, std::int64_t n_directions) {
  for (std::int64_t r = 0; r < table.rows; ++r) {
    const int preserve = table.preserve_norm[r * table.flag_line];
    if (preserve > 2)
      throw std::invalid_argument(place("table.preserve_norm", r) + " is " + std::to_string(preserve) +
                                  ", expected 0, 1 or 2");
    int used = 0;
    for (std::int64_t s = 0; s < table.slots; ++s) {
      const std::int64_t i = r * table.line + s;
      const std::int32_t direction = table.direction[i];
      if (direction == -1) continue;
      if (direction < -1 || direction >= n_directions)
        throw std::invalid_argument(place("table.direction", r, s) + " is " + std::to_string(direction) +
                                    ", expected -1 (empty) or an index below " + std::to_string(n_directions) +
                                    ", the number of directions");
      if (!std::isfinite(table.strength[i]))
        throw std::invalid_argument(place("table.strength", r, s) + " is " + std::to_string(table.strength[i]) +
                                    ", expected a finite number");
      if (!(table.low[i] <= table.high[i]))
        throw std::invalid_argument(place("table.low", r, s) + " is " + std::to_string(table.low[i]) +
                                    " and table.high is " + std::to_string(table.high[i]) +
                                    ", expected low <= high and no NaN");
      if (!(std::fabs(table.rotate[i]) <= 3.1415928f))
        throw std::invalid_argument(place("table.rotate", r, s) + " is " + std::to_string(table.rotate[i]) +
                                    ", expected radians between -pi and pi");
      ++used;
    }
    if (used > kMaxSlots)
      throw std::invalid_argument("table row " + std::to_string(r) + " uses " + std::to_string(used) +
                                  " slots, the cpu backend takes at most " + std::to_string(kMaxSlots));
  }
}

void check_indices(const char* name, const std::int32_t* index, std::int64_t count, std::int64_t below,
                   const char* what) {
  if (!index) return;
  bool bad = false;
#pragma omp simd reduction(| : bad)
  for (std::int64_t n = 0; n < count; ++n) bad |= index[n] < -1 || index[n] >= below;
  if (!bad) return;
  for (std::int64_t n = 0; n < count; ++n)
    if (index[n] < -1 || index[n] >= below)
      throw std::invalid_argument(place(name, n) + " is " + std::to_string(index[n]) +
                                  ", expected -1 or an index below " + std::to_string(below) + ", the number of " +
                                  what);
}

void run_steer(const SteerArgs& args) {
  check_table(*args.table, args.n_directions);
  check_indices("token_row", args.token_row, args.count, args.table->rows, "table rows");
  in_parallel(args.count, args.count * args.dim, [&](std::int64_t b, std::int64_t e) { kernels->steer(args, b, e); });
}

}  // namespace

PYBIND11_MODULE(_cpu, m) {
  kernels = &best_kernels();
  m.doc() = "Row kernels of emosteer for CPUs. Internal: use emosteer.ops.";
  m.attr("isa") = kernels->name;
  m.attr("max_slots") = kMaxSlots;
  m.def("threads", [] { return omp_get_max_threads(); });

  py::class_<RowView>(m, "Rows").def(
      py::init([](std::uintptr_t data, std::int64_t inner, std::int64_t outer_stride, std::int64_t inner_stride) {
        return RowView{data, inner, outer_stride, inner_stride};
      }));

  py::class_<Table>(m, "Table")
      .def(py::init([](std::int64_t rows, std::int64_t slots, std::uintptr_t direction, std::uintptr_t strength,
                       std::uintptr_t low, std::uintptr_t high, std::uintptr_t rotate, std::uintptr_t preserve_norm,
                       std::uintptr_t relative, std::int64_t line, std::int64_t flag_line) {
        return Table{rows,
                     slots,
                     pointer<std::int32_t>(direction),
                     pointer<float>(strength),
                     pointer<float>(low),
                     pointer<float>(high),
                     pointer<float>(rotate),
                     pointer<std::uint8_t>(preserve_norm),
                     pointer<std::uint8_t>(relative),
                     line,
                     flag_line};
      }));

  // Contiguous rows, in place: what decoding calls, kept to few arguments.
  m.def("steer_rows", [](int dtype, std::uintptr_t x, std::int64_t count, std::int64_t dim, std::int64_t row_bytes,
                         std::uintptr_t directions, std::int64_t n_directions, const Table& table,
                         std::uintptr_t token_row, double scale) {
    SteerArgs args{};
    args.dtype = static_cast<Dtype>(dtype);
    args.count = count;
    args.dim = dim;
    args.x = args.out = RowView{x, 1, row_bytes, 0};
    args.directions = pointer<float>(directions);
    args.n_directions = n_directions;
    args.table = &table;
    args.token_row = pointer<std::int32_t>(token_row);
    args.scale = scale;
    run_steer(args);
  });

  m.def("steer", [](int dtype, const RowView& x, const RowView& out, std::int64_t count, std::int64_t dim,
                    std::uintptr_t directions, std::int64_t n_directions, const Table& table, std::uintptr_t token_row,
                    double scale) {
    SteerArgs args{};
    args.dtype = static_cast<Dtype>(dtype);
    args.count = count;
    args.dim = dim;
    args.x = x;
    args.out = out;
    args.directions = pointer<float>(directions);
    args.n_directions = n_directions;
    args.table = &table;
    args.token_row = pointer<std::int32_t>(token_row);
    args.scale = scale;
    run_steer(args);
  });

  m.def("steer_rms_norm", [](int dtype, const RowView& x, const RowView& residual, const RowView& normed,
                             std::int64_t count, std::int64_t dim, std::uintptr_t weight, int weight_dtype, float eps,
                             float weight_offset, std::uintptr_t directions, std::int64_t n_directions,
                             const Table& table, std::uintptr_t token_row, double scale) {
    SteerArgs args{};
    args.dtype = static_cast<Dtype>(dtype);
    args.count = count;
    args.dim = dim;
    args.x = args.out = x;
    args.residual = residual;
    args.normed = normed;
    args.weight = weight;
    args.weight_dtype = static_cast<Dtype>(weight_dtype);
    args.eps = eps;
    args.weight_offset = weight_offset;
    args.directions = pointer<float>(directions);
    args.n_directions = n_directions;
    args.table = &table;
    args.token_row = pointer<std::int32_t>(token_row);
    args.scale = scale;
    run_steer(args);
  });

  // Contiguous rows: what a fused model calls once and twice a block.
  m.def("steer_rms_norm_rows", [](int dtype, std::uintptr_t x, std::uintptr_t normed, std::int64_t count,
                                  std::int64_t dim, std::int64_t row_bytes, std::uintptr_t weight, int weight_dtype,
                                  float eps, float weight_offset, std::uintptr_t directions, std::int64_t n_directions,
                                  const Table& table, std::uintptr_t token_row, double scale) {
    SteerArgs args{};
    args.dtype = static_cast<Dtype>(dtype);
    args.count = count;
    args.dim = dim;
    args.x = args.out = RowView{x, 1, row_bytes, 0};
    args.normed = RowView{normed, 1, row_bytes, 0};
    args.weight = weight;
    args.weight_dtype = static_cast<Dtype>(weight_dtype);
    args.eps = eps;
    args.weight_offset = weight_offset;
    args.directions = pointer<float>(directions);
    args.n_directions = n_directions;
    args.table = &table;
    args.token_row = pointer<std::int32_t>(token_row);
    args.scale = scale;
    run_steer(args);
  });

  m.def("rms_norm_rows",
        [](int dtype, std::uintptr_t x, std::uintptr_t out, std::int64_t count, std::int64_t dim,
           std::int64_t row_bytes, std::uintptr_t weight, int weight_dtype, float eps, float weight_offset) {
          const NormArgs args{static_cast<Dtype>(dtype),
                              static_cast<Dtype>(weight_dtype),
                              dim,
                              RowView{x, 1, row_bytes, 0},
                              RowView{out, 1, row_bytes, 0},
                              weight,
                              eps,
                              weight_offset};
          in_parallel(count, count * dim, [&](std::int64_t b, std::int64_t e) { kernels->rms_norm(args, b, e); });
        });

  m.def("rms_norm", [](int dtype, const RowView& x, const RowView& out, std::int64_t count, std::int64_t dim,
                       std::uintptr_t weight, int weight_dtype, float eps, float weight_offset) {
    const NormArgs args{
        static_cast<Dtype>(dtype), static_cast<Dtype>(weight_dtype), dim, x, out, weight, eps, weight_offset};
    in_parallel(count, count * dim, [&](std::int64_t b, std::int64_t e) { kernels->rms_norm(args, b, e); });
  });

  m.def("project", [](int dtype, const RowView& x, std::int64_t count, std::int64_t dim, std::uintptr_t directions,
                      std::int64_t n_directions, std::uintptr_t center, bool cosine, std::uintptr_t dots,
                      std::uintptr_t rows, std::uintptr_t norms) {
    const ProjectArgs args{static_cast<Dtype>(dtype),
                           dim,
                           n_directions,
                           x,
                           pointer<float>(directions),
                           pointer<float>(center),
                           cosine,
                           reinterpret_cast<float*>(dots),
                           reinterpret_cast<float*>(rows),
                           reinterpret_cast<float*>(norms)};
    in_parallel(count, count * dim * (directions ? n_directions : 1),
                [&](std::int64_t b, std::int64_t e) { kernels->project(args, b, e); });
  });

  // Contiguous rows, plain dots: what a monitor calls at every step.
  m.def("project_rows", [](int dtype, std::uintptr_t x, std::int64_t count, std::int64_t dim, std::int64_t row_bytes,
                           std::uintptr_t directions, std::int64_t n_directions, std::uintptr_t dots) {
    ProjectArgs args{};
    args.dtype = static_cast<Dtype>(dtype);
    args.dim = dim;
    args.n_directions = n_directions;
    args.x = RowView{x, 1, row_bytes, 0};
    args.directions = pointer<float>(directions);
    args.dots = reinterpret_cast<float*>(dots);
    in_parallel(count, count * dim * n_directions,
                [&](std::int64_t b, std::int64_t e) { kernels->project(args, b, e); });
  });

  m.def("moments", [](int dtype, const RowView& x, std::int64_t count, std::int64_t dim, std::uintptr_t group,
                      std::int64_t n_groups, std::uintptr_t weight, std::uintptr_t shift, std::uintptr_t sum,
                      std::uintptr_t rows, std::int64_t row_stride) {
    const MomentArgs args{static_cast<Dtype>(dtype),
                          count,
                          dim,
                          x,
                          pointer<std::int32_t>(group),
                          pointer<float>(weight),
                          pointer<double>(shift),
                          reinterpret_cast<double*>(sum),
                          reinterpret_cast<float*>(rows),
                          row_stride};
    check_indices("token_group", args.group, count, n_groups, "groups");
    in_parallel(dim, count * dim, [&](std::int64_t b, std::int64_t e) { kernels->moments(args, b, e); });
  });

  m.def("check_groups", [](std::uintptr_t group, std::int64_t count, std::int64_t n_groups) {
    check_indices("token_group", pointer<std::int32_t>(group), count, n_groups, "groups");
  });
}
