// C interface of the passes over maps of segment ids, for evaluation and data: colours of a PNG file to ids, and the
// histogram of the pairs of ids of two maps. Arguments are checked by the caller.
#include <cstdlib>
#include <cstring>

#include "library.h"

namespace {

constexpr int kUnknownFilter = 2;
constexpr int64_t kBlock = 16;  // pixels that are compared at once
constexpr int64_t kUnlisted = 0;

// Four bytes of a pixel are filtered at once; the highest is always 0.
uint32_t add_bytes(uint32_t a, uint32_t b) {
  return ((a & 0x7f7f7f7fu) + (b & 0x7f7f7f7fu)) ^ ((a ^ b) & 0x80808080u);
}

uint32_t mean_bytes(uint32_t a, uint32_t b) { return (a & b) + (((a ^ b) & 0xfefefefeu) >> 1); }

uint32_t load_pixel(const uint8_t* bytes) {
  return static_cast<uint32_t>(bytes[0]) | static_cast<uint32_t>(bytes[1]) << 8 | static_cast<uint32_t>(bytes[2]) << 16;
}

int magnitude(int value) { return value < 0 ? -value : value; }

// The predictor of PNG's fourth filter: of left, above and above left, the one next to left + above - above left.
uint32_t paeth(uint32_t left, uint32_t above, uint32_t corner) {
  if (above == corner || left == above) return left;
  if (left == corner) return above;
  uint32_t chosen = 0;
  for (int shift = 0; shift < 24; shift += 8) {
    const int a = left >> shift & 255, b = above >> shift & 255, c = corner >> shift & 255;
    const int to_a = magnitude(b - c), to_b = magnitude(a - c), to_c = magnitude(a + b - 2 * c);
    const int byte = to_a <= to_b && to_a <= to_c ? a : to_b <= to_c ? b : c;
    chosen |= static_cast<uint32_t>(byte) << shift;
  }
  return chosen;
}

bool is_zero(const uint8_t* bytes, int64_t count) {
  uint64_t seen = 0;
  int64_t i = 0;
  for (; i + 8 <= count; i += 8) {
    uint64_t word;
    std::memcpy(&word, bytes + i, 8);
    seen |= word;
  }
  for (; i < count; ++i) seen |= bytes[i];
  return seen == 0;
}

// Most rows of a map of segments are nearly those above: whole blocks are copied.
void add_row_above(const uint8_t* bytes, const uint32_t* above, uint32_t* row, int64_t width) {
  for (int64_t begin = 0; begin < width; begin += kBlock) {
    const int64_t end = begin + kBlock < width ? begin + kBlock : width;
    if (is_zero(bytes + 3 * begin, 3 * (end - begin))) {
      std::memcpy(row + begin, above + begin, static_cast<size_t>(end - begin) * sizeof(uint32_t));
    } else {
      for (int64_t x = begin; x < end; ++x) row[x] = add_bytes(load_pixel(bytes + 3 * x), above[x]);
    }
  }
}

bool unfilter_row(int filter, const uint8_t* bytes, const uint32_t* above, uint32_t* row, int64_t width) {
  uint32_t left = 0, corner = 0;
  switch (filter) {
    case 0:
      for (int64_t x = 0; x < width; ++x) row[x] = load_pixel(bytes + 3 * x);
      return true;
    case 1:
      for (int64_t x = 0; x < width; ++x) row[x] = left = add_bytes(load_pixel(bytes + 3 * x), left);
      return true;
    case 2:
      add_row_above(bytes, above, row, width);
      return true;
    case 3:
      for (int64_t x = 0; x < width; ++x)
        row[x] = left = add_bytes(load_pixel(bytes + 3 * x), mean_bytes(left, above[x]));
      return true;
    case 4:
      for (int64_t x = 0; x < width; ++x) {
        row[x] = left = add_bytes(load_pixel(bytes + 3 * x), paeth(left, above[x], corner));
        corner = above[x];
      }
      return true;
    default:
      return false;
  }
}

// Segment id to position, by open addressing; ids are at least 0.
struct Table {
  int32_t* keys;
  int32_t* values;
  uint32_t mask;

  static uint32_t size_for(int64_t count) {
    uint32_t size = 16;
    while (size < 4 * static_cast<uint64_t>(count)) size *= 2;
    return size;
  }

  uint32_t slot_of(int32_t key) const {
    const uint32_t mixed = static_cast<uint32_t>(key) * 0x9e3779b1u;
    uint32_t slot = (mixed ^ mixed >> 15) & mask;
    while (keys[slot] != key && keys[slot] >= 0) slot = (slot + 1) & mask;
    return slot;
  }

  int64_t position(int32_t key) const {
    if (key < 0) return kUnlisted;
    const uint32_t slot = slot_of(key);
    return keys[slot] == key ? values[slot] : kUnlisted;
  }
};

bool make_table(const int32_t* ids, int64_t count, Table* table) {
  const uint32_t size = Table::size_for(count);
  int32_t* memory = static_cast<int32_t*>(std::malloc(2 * sizeof(int32_t) * size));
  if (!memory) return false;
  *table = {memory, memory + size, size - 1};
  std::memset(table->keys, 0xff, sizeof(int32_t) * size);
  for (int64_t i = 0; i < count; ++i) {
    const uint32_t slot = table->slot_of(ids[i]);
    table->keys[slot] = ids[i];
    table->values[slot] = static_cast<int32_t>(i + 1);
  }
  return true;
}

// The first pixel from `begin` on whose pair of ids is another.
int64_t end_of_run(const int32_t* truth, const int32_t* found, int64_t begin, int64_t pixels) {
  const int32_t truth_id = truth[begin], found_id = found[begin];
  int64_t i = begin + 1;
  for (; i + kBlock <= pixels; i += kBlock) {
    int32_t differences = 0;
    for (int64_t j = 0; j < kBlock; ++j) differences |= (truth[i + j] ^ truth_id) | (found[i + j] ^ found_id);
    if (differences) break;
  }
  while (i < pixels && truth[i] == truth_id && found[i] == found_id) ++i;
  return i;
}

}  // namespace

// Segment ids (height, width) = R + 256 G + 65536 B of the inflated data of an RGB PNG: of each row its filter, then
// three bytes a pixel. Returns kUnknownFilter where a row says none of the five.
M2F_EXPORT int m2f_png_ids(const uint8_t* data, int64_t height, int64_t width, uint32_t* ids) {
  if (!height || !width) return 0;
  // Above the first row is nothing: it is taken for zeros, which are the last row's place until it is written.
  const uint32_t* above = ids + (height - 1) * width;
  uint32_t* nothing = nullptr;
  if (height == 1) {
    nothing = static_cast<uint32_t*>(std::calloc(static_cast<size_t>(width), sizeof(uint32_t)));
    if (!nothing) return m2f::kOutOfMemory;
    above = nothing;
  } else {
    std::memset(ids + (height - 1) * width, 0, static_cast<size_t>(width) * sizeof(uint32_t));
  }
  int status = 0;
  for (int64_t y = 0; y < height && !status; ++y) {
    const uint8_t* row = data + y * (1 + 3 * width);
    if (!unfilter_row(row[0], row + 1, above, ids + y * width, width)) status = kUnknownFilter;
    above = ids + y * width;
  }
  std::free(nothing);
  return status;
}

// joint: (1 + num_truth_ids, 1 + num_found_ids), zeros to which pixels are added; first row and column: ids not listed.
M2F_EXPORT int m2f_joint_histogram(const int32_t* truth, const int32_t* found, int64_t pixels, const int32_t* truth_ids,
                                   int64_t num_truth_ids, const int32_t* found_ids, int64_t num_found_ids,
                                   int64_t* joint) {
  Table rows, columns;
  if (!make_table(truth_ids, num_truth_ids, &rows)) return m2f::kOutOfMemory;
  if (!make_table(found_ids, num_found_ids, &columns)) {
    std::free(rows.keys);
    return m2f::kOutOfMemory;
  }
  for (int64_t begin = 0; begin < pixels;) {
    const int64_t end = end_of_run(truth, found, begin, pixels);
    joint[rows.position(truth[begin]) * (1 + num_found_ids) + columns.position(found[begin])] += end - begin;
    begin = end;
  }
  std::free(rows.keys);
  std::free(columns.keys);
  return 0;
}
