// The Python module emosteer._cuda: turns addresses and sizes into launches. Shapes, dtypes and strides
// were checked by the caller; values lie on the device and are checked by the kernels alone.
#include <pybind11/pybind11.h>

#include <stdexcept>
#include <string>

#include "launch.hpp"

namespace py = pybind11;
using namespace emosteer::cuda;

// A build for the host's processor (tests) names both.
#ifndef EMOSTEER_MODULE
#define EMOSTEER_MODULE _cuda
#define EMOSTEER_DEVICE "cuda"
#endif

namespace {

template <class T>
T* pointer(std::uintptr_t address) {
  return reinterpret_cast<T*>(address);
}

bool aligned(std::uintptr_t address) { return address % 16 == 0; }
// Whether every row of a contiguous float32 matrix starts at a multiple of 16 bytes.
bool aligned(std::uintptr_t data, std::int64_t dim) { return aligned(data) && dim % 4 == 0; }

RowView view(std::uintptr_t data, std::int64_t inner, std::int64_t outer_stride, std::int64_t inner_stride) {
  const bool all = aligned(data) && outer_stride % 16 == 0 && inner_stride % 16 == 0;
  return RowView{pointer<char>(data), inner, outer_stride, inner_stride, all};
}

unsigned rows(std::int64_t count) {
  if (count < 1 || count > INT32_MAX)
    throw std::invalid_argument("x has " + std::to_string(count) + " rows, the cuda backend takes 1 to " +
                                std::to_string(INT32_MAX));
  return static_cast<unsigned>(count);
}

int columns(std::int64_t dim) {
  if (dim < 1 || dim > kMaxDim)
    throw std::invalid_argument("x has " + std::to_string(dim) + " columns, the cuda backend takes 1 to " +
                                std::to_string(kMaxDim));
  return static_cast<int>(dim);
}

SteerArgs steering(const RowView& x, const RowView& out, std::int64_t count, std::int64_t dim,
                   std::uintptr_t directions, std::int64_t n_directions, const Table& table, std::uintptr_t token_row,
                   double scale) {
  SteerArgs args{};
  args.count = rows(count);
  args.dim = columns(dim);
  args.n_directions = static_cast<int>(n_directions);
  args.x = x;
  args.out = out;
  args.directions = pointer<const float>(directions);
  args.directions_aligned = aligned(directions, dim);
  args.table = table;
  args.token_row = pointer<const std::int32_t>(token_row);
  args.scale = scale;
  return args;
}

NormArgs norming(const RowView& x, const RowView& out, std::int64_t count, std::int64_t dim, std::uintptr_t weight,
                 int weight_dtype, float eps, float weight_offset) {
  return NormArgs{rows(count),
                  columns(dim),
                  x,
                  out,
                  pointer<const void>(weight),
                  static_cast<Dtype>(weight_dtype),
                  aligned(weight),
                  eps,
                  weight_offset,
                  0};
}

// Rows of a model that are steered in one place: all that stays the same from call to call.
class Site {
 public:
  Site(int dtype, std::int64_t dim, std::int64_t item, std::uintptr_t directions, std::int64_t n_directions,
       const Table& table, double scale, std::uintptr_t weight, int weight_dtype, float eps, float weight_offset,
       int device)
      : dtype_(static_cast<Dtype>(dtype)), row_bytes_(dim * item), device_(device) {
    args_ = steering({}, {}, 1, dim, directions, n_directions, table, 0, scale);
    if (weight) args_.norm = norming({}, {}, 1, dim, weight, weight_dtype, eps, weight_offset);
  }

  // Contiguous rows at `x`; with a norm, `normed` takes the normalised stream.
  void run(std::uintptr_t x, std::uintptr_t normed, std::int64_t count, std::uintptr_t token_row,
           std::uintptr_t stream) const {
    SteerArgs args = args_;
    args.x = args.out = view(x, 1, row_bytes_, 0);
    args.count = rows(count);
    args.token_row = pointer<const std::int32_t>(token_row);
    if (normed) {
      args.norm.count = args.count;
      args.norm.x = args.x;
      args.norm.out = view(normed, 1, row_bytes_, 0);
    }
    steer(dtype_, args, normed != 0, {device_, stream});
  }

 private:
  Dtype dtype_;
  std::int64_t row_bytes_;
  int device_;
  SteerArgs args_;
};

// A norm of a model: all that stays the same from call to call.
class Norm {
 public:
  Norm(int dtype, std::int64_t dim, std::int64_t item, std::uintptr_t weight, int weight_dtype, float eps,
       float weight_offset, int device)
      : dtype_(static_cast<Dtype>(dtype)),
        row_bytes_(dim * item),
        device_(device),
        args_(norming({}, {}, 1, dim, weight, weight_dtype, eps, weight_offset)) {}

  // Contiguous rows at `x`; `out` takes the normalised ones.
  void run(std::uintptr_t x, std::uintptr_t out, std::int64_t count, std::uintptr_t stream) const {
    NormArgs args = args_;
    args.count = rows(count);
    args.x = view(x, 1, row_bytes_, 0);
    args.out = view(out, 1, row_bytes_, 0);
    rms_norm(dtype_, args, {device_, stream});
  }

 private:
  Dtype dtype_;
  std::int64_t row_bytes_;
  int device_;
  NormArgs args_;
};

}  // namespace

PYBIND11_MODULE(EMOSTEER_MODULE, m) {
  m.doc() = "Row kernels of emosteer for NVIDIA GPUs. Internal: use emosteer.ops.";
  m.attr("device_type") = EMOSTEER_DEVICE;
  m.attr("max_dim") = kMaxDim;
  m.attr("max_slots") = kMaxSlots;

  py::class_<RowView>(m, "Rows", py::module_local()).def(py::init(&view));

  py::class_<Table>(m, "Table", py::module_local())
      .def(py::init([](std::int64_t rows, int slots, std::uintptr_t direction, std::uintptr_t strength,
                       std::uintptr_t low, std::uintptr_t high, std::uintptr_t rotate, std::uintptr_t preserve_norm,
                       std::uintptr_t relative, std::int64_t line, std::int64_t flag_line) {
        if (slots < 1 || slots > kMaxSlots)
          throw std::invalid_argument("table has " + std::to_string(slots) + " slots, the cuda backend takes 1 to " +
                                      std::to_string(kMaxSlots));
        return Table{rows,
                     slots,
                     pointer<const std::int32_t>(direction),
                     pointer<const float>(strength),
                     pointer<const float>(low),
                     pointer<const float>(high),
                     pointer<const float>(rotate),
                     pointer<const std::uint8_t>(preserve_norm),
                     pointer<const std::uint8_t>(relative),
                     line,
                     flag_line};
      }));

  py::class_<Site>(m, "Site", py::module_local())
      .def(py::init<int, std::int64_t, std::int64_t, std::uintptr_t, std::int64_t, const Table&, double, std::uintptr_t,
                    int, float, float, int>())
      .def("run", &Site::run);

  py::class_<Norm>(m, "Norm", py::module_local())
      .def(py::init<int, std::int64_t, std::int64_t, std::uintptr_t, int, float, float, int>())
      .def("run", &Norm::run);

  // Contiguous rows, in place: what decoding calls, kept to few arguments.
  m.def("steer_rows", [](int dtype, std::uintptr_t x, std::int64_t count, std::int64_t dim, std::int64_t row_bytes,
                         std::uintptr_t directions, std::int64_t n_directions, const Table& table,
                         std::uintptr_t token_row, double scale, int device, std::uintptr_t stream) {
    const RowView all = view(x, 1, row_bytes, 0);
    steer(static_cast<Dtype>(dtype), steering(all, all, count, dim, directions, n_directions, table, token_row, scale),
          false, {device, stream});
  });

  m.def("steer", [](int dtype, const RowView& x, const RowView& out, std::int64_t count, std::int64_t dim,
                    std::uintptr_t directions, std::int64_t n_directions, const Table& table, std::uintptr_t token_row,
                    double scale, int device, std::uintptr_t stream) {
    steer(static_cast<Dtype>(dtype), steering(x, out, count, dim, directions, n_directions, table, token_row, scale),
          false, {device, stream});
  });

  m.def("steer_rms_norm",
        [](int dtype, const RowView& x, const RowView& residual, const RowView& normed, std::int64_t count,
           std::int64_t dim, std::uintptr_t weight, int weight_dtype, float eps, float weight_offset,
           std::uintptr_t directions, std::int64_t n_directions, const Table& table, std::uintptr_t token_row,
           double scale, int device, std::uintptr_t stream) {
          SteerArgs args = steering(x, x, count, dim, directions, n_directions, table, token_row, scale);
          args.residual = residual;
          args.norm = norming(x, normed, count, dim, weight, weight_dtype, eps, weight_offset);
          steer(static_cast<Dtype>(dtype), args, true, {device, stream});
        });

  m.def("rms_norm",
        [](int dtype, const RowView& x, const RowView& out, std::int64_t count, std::int64_t dim, std::uintptr_t weight,
           int weight_dtype, float eps, float weight_offset, int device, std::uintptr_t stream) {
          rms_norm(static_cast<Dtype>(dtype), norming(x, out, count, dim, weight, weight_dtype, eps, weight_offset),
                   {device, stream});
        });

  m.def("project", [](int dtype, const RowView& x, std::int64_t count, std::int64_t dim, std::uintptr_t directions,
                      std::int64_t n_directions, std::uintptr_t center, bool cosine, std::uintptr_t dots, int device,
                      std::uintptr_t stream) {
    project(static_cast<Dtype>(dtype),
            ProjectArgs{rows(count), columns(dim), static_cast<int>(n_directions), x, pointer<const float>(directions),
                        pointer<const float>(center), aligned(directions, dim), aligned(center), cosine,
                        pointer<float>(dots), 0},
            {device, stream});
  });

  m.def("launch_nothing", [](int device) { nothing({device, 0}); });

  // (threads of a row, rows of a block, bytes of shared memory of a block)
  m.def("shape", [](std::int64_t dim, int slots) {
    const Shape shape = shape_of(columns(dim), slots);
    return py::make_tuple(shape.threads, shape.rows_per_block, shape.shared_bytes());
  });
}
