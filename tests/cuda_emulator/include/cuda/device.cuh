// The twin of csrc/cuda/device.cuh in plain C++: the same functions, as the PTX manual defines
// them.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include <cmath>
#include <cstdint>
#include <cstring>

namespace vidgen::cuda {

// ---- shared memory: an address is the distance from its beginning ----

template <class T>
T* dynamic_shared() {
  return reinterpret_cast<T*>(emulator::shared_memory());
}

inline uint32_t shared_address(const void* pointer) {
  return static_cast<uint32_t>(static_cast<const unsigned char*>(pointer) -
                               emulator::shared_memory());
}

// ---- asynchronous copies ----

inline void copy_async(uint32_t to, const void* from, bool valid) {
  emulator::copy_async(to, from, 16, valid ? 16 : 0);
}
inline void commit_copies() { emulator::commit_copies(); }
template <int kGroupsLeft>
void wait_for_copies() {
  emulator::wait_for_copies(kGroupsLeft);
}

// ---- matrix fragments ----

// Lane 8m + r names row r of matrix m; register m of lane 4i + j then holds elements 2j and 2j + 1
// of row i of matrix m. Transposed: elements (2j, i) and (2j + 1, i).
template <bool kTransposed>
void load_matrices_as(uint32_t (&registers)[4], uint32_t address) {
  struct Lane {
    uint32_t address;
    uint32_t* registers;
  } mine{address, registers};
  emulator::warp_collective(
      kTransposed ? "ldmatrix.trans" : "ldmatrix", 0xffffffffu, &mine,
      [](void* const(&operands)[emulator::kLanes]) {
        uint16_t element[4][8][8];
        for (int matrix = 0; matrix < 4; ++matrix) {
          unsigned banks = 0;
          for (int row = 0; row < 8; ++row) {
            const uint32_t at = static_cast<Lane*>(operands[8 * matrix + row])->address;
            if (at % 16 != 0) emulator::fail("ldmatrix from a misaligned address");
            if (at + std::size_t{16} > emulator::shared_bytes()) {
              emulator::fail("ldmatrix past the end of shared memory");
            }
            std::memcpy(element[matrix][row], emulator::shared_memory() + at, 16);
            // 16 bytes are four of the 32 banks; a phase reads eight rows at once.
            const unsigned bank = 1u << (at / 16 % 8);
            if ((banks & bank) != 0) ++emulator::counts().bank_conflicts;
            banks |= bank;
          }
        }
        for (int lane = 0; lane < emulator::kLanes; ++lane) {
          auto* to = static_cast<Lane*>(operands[lane])->registers;
          const int i = lane / 4, j = lane % 4;
          for (int matrix = 0; matrix < 4; ++matrix) {
            const auto at = [&](int pair) -> uint32_t {
              return kTransposed ? element[matrix][2 * j + pair][i]
                                 : element[matrix][i][2 * j + pair];
            };
            to[matrix] = at(0) | at(1) << 16;
          }
        }
      });
}
inline void load_matrices(uint32_t (&registers)[4], uint32_t address) {
  load_matrices_as<false>(registers, address);
}
inline void load_matrices_transposed(uint32_t (&registers)[4], uint32_t address) {
  load_matrices_as<true>(registers, address);
}

inline float half_of(uint32_t pair, int which, __nv_bfloat16) {
  return __bfloat162float({static_cast<uint16_t>(pair >> 16 * which)});
}
inline float half_of(uint32_t pair, int which, __half) {
  return __half2float({static_cast<uint16_t>(pair >> 16 * which)});
}

// c (16 x 8) += a (16 x 16) * b (16 x 8). Lane 4i + j holds
//   of a: rows i (registers 0, 2) and i + 8 (1, 3), columns 2j, 2j + 1, and 8 further (2, 3);
//   of b: column i, rows 2j, 2j + 1 (b0), and 8 further (b1);
//   of c: rows i (0, 1) and i + 8 (2, 3), columns 2j (0, 2) and 2j + 1 (1, 3).
template <class T>
void multiply_add(float (&c)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
  struct Lane {
    float* c;
    const uint32_t* a;
    uint32_t b[2];
  } mine{c, a, {b0, b1}};
  emulator::warp_collective(
      "mma.sync", 0xffffffffu, &mine, [](void* const(&operands)[emulator::kLanes]) {
        ++emulator::counts().matrix_products;
        float a[16][16], b[16][8];
        for (int lane = 0; lane < emulator::kLanes; ++lane) {
          const auto& from = *static_cast<const Lane*>(operands[lane]);
          const int i = lane / 4, j = lane % 4;
          for (int pair = 0; pair < 2; ++pair) {
            for (int r = 0; r < 4; ++r) {
              a[i + r % 2 * 8][2 * j + pair + r / 2 * 8] = half_of(from.a[r], pair, T{});
            }
            for (int r = 0; r < 2; ++r) b[2 * j + pair + r * 8][i] = half_of(from.b[r], pair, T{});
          }
        }
        for (int lane = 0; lane < emulator::kLanes; ++lane) {
          float* c = static_cast<const Lane*>(operands[lane])->c;
          for (int r = 0; r < 4; ++r) {
            const int row = lane / 4 + r / 2 * 8, column = lane % 4 * 2 + r % 2;
            float sum = c[r];
            for (int k = 0; k < 16; ++k) sum += a[row][k] * b[k][column];
            c[r] = sum;
          }
        }
      });
}

// ---- arithmetic ----

inline float exp2_fast(float x) { return std::exp2(x); }

inline uint32_t pack_pair(float first, float second, __nv_bfloat16) {
  return __float2bfloat16_rn(first).bits | uint32_t{__float2bfloat16_rn(second).bits} << 16;
}
inline uint32_t pack_pair(float first, float second, __half) {
  return __float2half_rn(first).bits | uint32_t{__float2half_rn(second).bits} << 16;
}

}  // namespace vidgen::cuda
