// A C door to llama.cpp's own loader of control vectors, which has a C++ signature only.
// The two structures are those of llama.cpp's common/common.h.

#include <cstring>
#include <string>
#include <vector>

struct common_control_vector_data {
  int n_embd;
  std::vector<float> data;
};

struct common_control_vector_load_info {
  float strength;
  std::string fname;
};

common_control_vector_data common_control_vector_load(const std::vector<common_control_vector_load_info>&);

// Loads `path`; returns n_embd, −1 where llama.cpp refuses the file. `size` numbers fit into `data`;
// `used` says how many there are.
extern "C" int load(const char* path, float strength, float* data, size_t size, size_t* used) {
  const auto loaded = common_control_vector_load({{strength, path}});
  *used = loaded.data.size();
  if (*used > size) return -2;
  std::memcpy(data, loaded.data.data(), *used * sizeof(float));
  return loaded.n_embd;
}
