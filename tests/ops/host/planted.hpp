// Bugs that are planted in a copy of the sources and sleep there until HOST_BUG names one by its number: one build for
// all of them.
#pragma once
#include <cstdlib>

inline const int kPlanted = std::getenv("HOST_BUG") ? std::atoi(std::getenv("HOST_BUG")) : 0;
inline bool planted(int bug) { return bug == kPlanted; }
