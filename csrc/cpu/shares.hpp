// What each thread of a team takes of the rows, or columns, of a call.
#pragma once
#include <cstdint>

namespace emosteer {

struct Share {
  std::int64_t begin, end;
};

// Thread `rank` of `team`: shares touch, none overlap, and their lengths differ by one at most.
inline Share share_of(std::int64_t count, std::int64_t rank, std::int64_t team) {
  return {count * rank / team, count * (rank + 1) / team};
}

}  // namespace emosteer
