// Converts Python arguments to argument structs, field by field.
#pragma once

#include <cstddef>

#include "bind/tensor_view_caster.h"

namespace vidgen::bind {

// An argument struct is a row of TensorViews, and a float after them where a kernel has one.
template <class Args>
constexpr std::size_t kViews = sizeof(Args) / sizeof(TensorView);
template <class Args>
constexpr bool kHasEps = sizeof(Args) % sizeof(TensorView) != 0;

template <std::size_t>
using View = const TensorView&;

}  // namespace vidgen::bind
