// A TensorView from the Python tuple (address, type code, shape, strides), or from None: absent.
#pragma once

#include <pybind11/pybind11.h>

#include "vidgen/tensor_view.h"

namespace pybind11::detail {

template <>
struct type_caster<vidgen::TensorView> {
  PYBIND11_TYPE_CASTER(vidgen::TensorView, const_name("tuple"));

  bool load(handle source, bool) {
    PyObject* tuple = source.ptr();
    if (tuple == Py_None) {
      value = vidgen::TensorView{};
      return true;
    }
    if (!PyTuple_Check(tuple) || PyTuple_GET_SIZE(tuple) != 4) return false;
    PyObject* shape = PyTuple_GET_ITEM(tuple, 2);
    PyObject* strides = PyTuple_GET_ITEM(tuple, 3);
    if (!PyTuple_Check(shape) || !PyTuple_Check(strides)) return false;
    const Py_ssize_t dims = PyTuple_GET_SIZE(shape);
    if (dims > vidgen::TensorView::kMaxDims || PyTuple_GET_SIZE(strides) != dims) return false;
    value.data = PyLong_AsVoidPtr(PyTuple_GET_ITEM(tuple, 0));
    value.dtype = static_cast<vidgen::DType>(PyLong_AsLong(PyTuple_GET_ITEM(tuple, 1)));
    value.dims = static_cast<int>(dims);
    for (Py_ssize_t i = 0; i < dims; ++i) {
      value.size[i] = PyLong_AsLongLong(PyTuple_GET_ITEM(shape, i));
      value.stride[i] = PyLong_AsLongLong(PyTuple_GET_ITEM(strides, i));
    }
    if (PyErr_Occurred() != nullptr) {
      PyErr_Clear();
      return false;
    }
    return true;
  }
};

}  // namespace pybind11::detail
