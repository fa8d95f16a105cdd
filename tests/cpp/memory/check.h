// The few words the memory tests need.
#pragma once

#include <cstdio>
#include <string>

namespace vidgen::test {

inline int failures = 0;

inline void expect(bool condition, const std::string& what) {
  if (condition) return;
  ++failures;
  std::fprintf(stderr, "FAILED: %s\n", what.c_str());
}

template <class Error, class Function>
void expect_throws(Function function, const std::string& text) {
  try {
    function();
  } catch (const Error& error) {
    expect(std::string(error.what()).find(text) != std::string::npos,
           "\"" + std::string(error.what()) + "\" should say \"" + text + "\"");
    return;
  }
  expect(false, "nothing thrown that says \"" + text + "\"");
}

void test_model();
void test_queue();
void test_threads();
void test_processes();
void test_cuda_lane();

}  // namespace vidgen::test
