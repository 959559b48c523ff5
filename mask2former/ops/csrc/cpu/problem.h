// What the CPU entry points hand to the kernels, and the table of kernels each instruction set provides.
// Layouts (row-major, contiguous): value (B, S, M, D); locations (B, Q, M, L, P, 2) as (x, y) in [0, 1];
// weights (B, Q, M, L, P); output (B, Q, M * D); shapes (L, 2) as (height, width).
// With centres (Q, 2) given (forward only), locations are offsets from them in pixels of each level and weights are logits
// of a softmax over L * P, both in the element type of value.
// B batch, S tokens of all levels, M heads, D channels of a head, Q queries, L levels, P points.
#pragma once

#include <stddef.h>
#include <stdint.h>

namespace m2f {

// Element types of value, output and their gradients. Locations and weights are float64 for Float64, else float32.
enum DType : int { kFloat32 = 0, kFloat64 = 1, kBFloat16 = 2 };

struct Problem {
  int dtype;
  const void* value;
  const int64_t* shapes;
  const void* locations;
  const void* weights;
  const void* grad_output;  // backward only
  void* output;             // forward only
  void* grad_value;         // backward only, as are the next two
  void* grad_locations;
  void* grad_weights;
  int64_t batch, tokens, heads, channels, queries, levels, points;
  const void* centres;  // float64 for Float64, else float32; null: locations and weights are what they are called
};

// One side of Winograd's transform, of the tiles [first_tile, …) of a strip; see winograd.h.
// Layouts: map and output (B, H, W, C); transformed (36, tiles of the strip, C), its first dimension `stride` apart.
// C is a multiple of 16.
struct WinogradProblem {
  const float* map;    // input side only
  float* transformed;  // written by the input side, read by the output side
  int64_t stride;
  float* output;       // output side only, as are the next three: output = products * scale + shift
  const float* scale;
  const float* shift;
  int relu;
  int64_t height, width, channels, first_tile;
};

// A channels_last map (batch, pixels, channels), float32 or bfloat16, that is changed in place; see maps.h.
struct MapProblem {
  int dtype;
  void* map;
  int64_t pixels, channels;
  int64_t groups;      // moments only
  const float* scale;  // affine only, as are the next two; both (batch, channels)
  const float* shift;
  int relu;
  int64_t width;      // adding a resized map only, as are the next three
  const void* above;  // (batch, above_height, above_width, channels)
  int64_t above_height, above_width;
};

// Tokens x (batch, rows, channels), float32, its batch items `stride` apart, that become the layer norm of x + y; y
// (batch, rows, channels) is float32 or bfloat16. See maps.h.
struct AddNormProblem {
  int dtype;  // of y
  float* x;
  const void* y;
  const float* weight;  // (channels), as the next
  const float* bias;
  float eps;
  int64_t rows, channels, stride;
};

// Masks at the output's size in a strip of its rows; see masks.h.
// Output row y is the sum over t of row_weights[y * row_taps + t] times map row row_first[y] + t, columns likewise.
struct MaskProblem {
  const float* maps;  // (masks, height, map_width)
  int64_t map_height, map_width;
  const int32_t* row_first;
  const float* row_weights;
  int64_t row_taps;
  const int32_t* column_first;
  const float* column_weights;  // (column_taps, width)
  int64_t column_taps;
  int64_t begin, end, width;  // rows of the strip, and its width
  float least_logit;          // a pixel whose logit exceeds it belongs to the mask
  float* probs;               // (masks, end - begin, width)
  uint8_t* insides;           // likewise
  float* sums;                // (masks, 2): probabilities inside the mask, and how many pixels these are
};

// Which of several masks each pixel goes to; see masks.h.
struct WinnerProblem {
  const float* probs;    // (masks, pixels)
  const float* weights;  // (masks)
  int64_t masks, pixels;
  float threshold;   // from which probability on a pixel is inside a mask
  int32_t* numbers;  // (pixels): twice the mask, plus one inside it
};

// Attention of queries (B, Q, M * D) to keys and values (B, S, M * D), float32 or bfloat16; see attention.h. D is a
// multiple of 32.
struct AttentionProblem {
  int dtype;
  const void* query;
  const void* key;
  const void* value;
  const uint8_t* seen;  // (B, Q, S), not zero where a query sees a token; null: everywhere
  float* output;        // like query
  float scale;          // of the scores
  int64_t batch, heads, channels, queries, tokens;
  int64_t query_block;  // queries of one task
};

// Dilated neighbourhood attention of queries (B, h, w, M, D), which have the places of the keys and values (B, H, W, M, D)
// at their upper left; see neighbourhood.h. Their channels lie side by side, the rest has strides in elements over B, rows,
// columns and M; output and gradients have no gaps. H and W are at least k * dilation. Bias (M, 2 k - 1, 2 k - 1) and its
// gradient are float64 for Float64, else float32.
struct NeighbourhoodProblem {
  int dtype;
  const void *query, *key, *value, *bias;
  const void* grad_output;  // backward only, as are the gradients
  void* output;             // forward only
  void *grad_query, *grad_key, *grad_value;
  void* grad_bias;  // (B, dilation) times that of bias: one for each residue of the rows
  double scale;     // of the products of queries and keys
  int64_t batch, heads, channels, query_height, query_width, height, width, kernel, dilation;
  int64_t query_strides[4], key_strides[4], value_strides[4];
  int64_t row_block;  // query rows of a forward task
};

struct Kernels {
  const char* name;
  // Bytes of 64-byte aligned scratch that one thread needs.
  size_t (*forward_scratch)(const Problem&);
  size_t (*backward_scratch)(const Problem&);
  // Output of the queries [begin, end) of one batch item, all heads.
  void (*forward_tile)(const Problem&, int64_t batch, int64_t begin, int64_t end, void* scratch);
  // All three gradients of one (batch item, head, level): no two slices write the same element.
  void (*backward_slice)(const Problem&, int64_t batch, int64_t head, int64_t level, void* scratch);
  // Transforms of the tiles [begin, end) of a strip; scratch for one pixel's channels.
  void (*winograd_input)(const WinogradProblem&, int64_t begin, int64_t end, void* scratch);
  void (*winograd_gradient)(const WinogradProblem&, int64_t begin, int64_t end, void* scratch);
  void (*winograd_output)(const WinogradProblem&, int64_t begin, int64_t end, void* scratch);
  // Of pixels [begin, end) of one image; moments writes 2 * groups values and needs scratch for 2 * channels.
  void (*map_moments)(const MapProblem&, int64_t batch, int64_t begin, int64_t end, double* out, void* scratch);
  void (*map_affine)(const MapProblem&, int64_t batch, int64_t begin, int64_t end);
  // One row; scratch for a row of the map above.
  void (*map_add_resized)(const MapProblem&, int64_t batch, int64_t y, void* scratch);
  void (*add_norm_rows)(const AddNormProblem&, int64_t begin, int64_t end);
  size_t (*mask_scratch)(const MaskProblem&);
  void (*mask_strip)(const MaskProblem&, int64_t mask, void* scratch);
  size_t (*winners_scratch)(const WinnerProblem&);
  // Of the pixels [begin, end); counts: pixels of each number, 2 * masks, then pixels inside each mask.
  void (*winners_block)(const WinnerProblem&, int64_t begin, int64_t end, int64_t* counts, void* scratch);
  size_t (*attention_scratch)(const AttentionProblem&);
  // Of the queries [begin, end) of one head.
  void (*attention)(const AttentionProblem&, int64_t batch, int64_t head, int64_t begin, int64_t end, void* scratch);
  size_t (*neighbourhood_scratch)(const NeighbourhoodProblem&);
  // Output of the query rows [begin, end) of one residue class of one head.
  void (*neighbourhood_forward)(const NeighbourhoodProblem&, int64_t batch, int64_t head, int64_t residue_y,
                                int64_t residue_x, int64_t begin, int64_t end, void* scratch);
  // All gradients of the rows with one residue: no two slices write the same element.
  void (*neighbourhood_backward)(const NeighbourhoodProblem&, int64_t batch, int64_t head, int64_t residue_y,
                                 void* scratch);
};

}  // namespace m2f

extern "C" {
__attribute__((visibility("hidden"))) extern const m2f::Kernels m2f_kernels_portable;
#if defined(M2F_X86)
__attribute__((visibility("hidden"))) extern const m2f::Kernels m2f_kernels_avx2;
__attribute__((visibility("hidden"))) extern const m2f::Kernels m2f_kernels_avx512;
#endif
}
