// C interface of the choice of points at which masks are uncertain. Arguments are checked by the caller.
#include <cmath>
#include <cstring>

#include "library.h"
#include "parallel.h"

namespace {

struct PointsProblem {
  const float* maps;  // (maps, height, width)
  int64_t height, width;
  const float* candidates;  // (maps, num_candidates, 2): x, y, 0 to 1 from edge to edge
  int64_t num_candidates, num_chosen;
  float* chosen;  // (maps, num_chosen, 2)
};

// As torch's grid_sample computes it, from coordinates in -1 to 1; pixels beyond the edges are zero.
float sample(const float* map, int64_t height, int64_t width, float x, float y) {
  const float column = ((x * 2 - 1 + 1) * width - 1) / 2, row = ((y * 2 - 1 + 1) * height - 1) / 2;
  const float left = std::floor(column), top = std::floor(row);
  const float to_right = column - left, to_bottom = row - top;
  const int64_t x0 = static_cast<int64_t>(left), y0 = static_cast<int64_t>(top);
  const auto pixel = [=](int64_t y, int64_t x) {
    return y >= 0 && y < height && x >= 0 && x < width ? map[y * width + x] : 0.0f;
  };
  return pixel(y0, x0) * ((1 - to_right) * (1 - to_bottom)) + pixel(y0, x0 + 1) * (to_right * (1 - to_bottom)) +
         pixel(y0 + 1, x0) * ((1 - to_right) * to_bottom) + pixel(y0 + 1, x0 + 1) * (to_right * to_bottom);
}

struct Candidate {
  uint32_t key;  // the bits of |value|, which are in the order of the values, NaN last
  uint32_t number;
};

Candidate candidate_of(float value, int64_t number) {
  uint32_t bits;
  std::memcpy(&bits, &value, sizeof(bits));
  return {bits & 0x7fffffffu, static_cast<uint32_t>(number)};
}

constexpr int kDigitBits = 11, kDigits = 3;  // of a key's 31 bits
constexpr uint32_t kDigitValues = 1u << kDigitBits;

uint32_t digit_of(uint32_t key, int digit) { return key >> (digit * kDigitBits) & (kDigitValues - 1); }

// Stable, from the lowest digit on. The result lies in `other`.
void sort_by_key(Candidate* items, Candidate* other, int64_t count) {
  static_assert(kDigits % 2 == 1 && kDigits * kDigitBits >= 31, "all bits of a key, and the last pass ends in `other`");
  for (int digit = 0; digit < kDigits; ++digit) {
    uint32_t place[kDigitValues] = {};
    for (int64_t i = 0; i < count; ++i) ++place[digit_of(items[i].key, digit)];
    uint32_t before = 0;
    for (uint32_t& value : place) {
      const uint32_t here = value;
      value = before;
      before += here;
    }
    for (int64_t i = 0; i < count; ++i) other[place[digit_of(items[i].key, digit)]++] = items[i];
    Candidate* sorted = other;
    other = items;
    items = sorted;
  }
}

void choose_task(const void* context, int64_t index, void* scratch) {
  const PointsProblem& pb = *static_cast<const PointsProblem*>(context);
  const float* map = pb.maps + index * pb.height * pb.width;
  const float* candidates = pb.candidates + index * pb.num_candidates * 2;
  float* chosen = pb.chosen + index * pb.num_chosen * 2;
  Candidate* items = static_cast<Candidate*>(scratch);
  Candidate* sorted = items + pb.num_candidates;
  for (int64_t i = 0; i < pb.num_candidates; ++i) {
    items[i] = candidate_of(sample(map, pb.height, pb.width, candidates[2 * i], candidates[2 * i + 1]), i);
  }
  sort_by_key(items, sorted, pb.num_candidates);
  for (int64_t i = 0; i < pb.num_chosen; ++i) {
    std::memcpy(chosen + 2 * i, candidates + 2 * static_cast<int64_t>(sorted[i].number), 2 * sizeof(float));
  }
}

}  // namespace

// The num_chosen candidates of each map where its absolute value is smallest, in the order of that value.
M2F_EXPORT int m2f_uncertain_points(const float* maps, int64_t num_maps, int64_t height, int64_t width,
                                    const float* candidates, int64_t num_candidates, int64_t num_chosen, float* chosen,
                                    int threads) {
  const PointsProblem pb = {maps, height, width, candidates, num_candidates, num_chosen, chosen};
  const size_t scratch = static_cast<size_t>(2 * num_candidates) * sizeof(Candidate);
  return m2f::run_tasks(num_maps, threads, scratch, choose_task, &pb) ? 0 : m2f::kOutOfMemory;
}
