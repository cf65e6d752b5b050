// product.c: one tile of a float32 product on this thread, over packed panels. Each element of C
// is one chain of fused multiply-adds over runs of DEPTH, wherever it lies: its bits depend on its
// row of A and its column of B alone, not on the tile.
#include "cpu.h"
#include <string.h>

#define REAL float
#define NAME(x) x##_f32
#include "panel.h"

#define DEPTH WEFT_PRODUCT_DEPTH
#define WIDE (PANEL_VECS * LANES) // columns of a panel of B
#define HIGH WEFT_PRODUCT_ROWS    // rows of A that stay in cache while the panels pass by

typedef float four __attribute__((vector_size(16), aligned(4), may_alias));

// to[p][j] = from[j][p] for 4 rows of `from` and `depth` positions
static inline void turn_four(const float *RESTRICT from, int64_t ld, int64_t depth,
                             float *RESTRICT to, int64_t width) {
    int64_t p = 0;
    for (; p + 4 <= depth; p += 4) {
        const four a = *(const four *)(from + p), b = *(const four *)(from + ld + p);
        const four c = *(const four *)(from + 2 * ld + p), d = *(const four *)(from + 3 * ld + p);
        const four ab_low = __builtin_shufflevector(a, b, 0, 4, 1, 5),
                   ab_high = __builtin_shufflevector(a, b, 2, 6, 3, 7);
        const four cd_low = __builtin_shufflevector(c, d, 0, 4, 1, 5),
                   cd_high = __builtin_shufflevector(c, d, 2, 6, 3, 7);
        *(four *)(to + p * width) = __builtin_shufflevector(ab_low, cd_low, 0, 1, 4, 5);
        *(four *)(to + (p + 1) * width) = __builtin_shufflevector(ab_low, cd_low, 2, 3, 6, 7);
        *(four *)(to + (p + 2) * width) = __builtin_shufflevector(ab_high, cd_high, 0, 1, 4, 5);
        *(four *)(to + (p + 3) * width) = __builtin_shufflevector(ab_high, cd_high, 2, 3, 6, 7);
    }
    for (; p < depth; p++)
        for (int j = 0; j < 4; j++) to[p * width + j] = from[j * ld + p];
}

static inline int64_t position(const weft_gemm *g, int64_t p, int64_t ld, int64_t gap) {
    return p * ld + (gap ? p / g->k_group * gap : 0);
}

// Positions [p0, p0 + depth) and columns [j0, j1) of op(B) as panels [depth, WIDE], zeros behind.
static void pack_b(const weft_gemm *g, const float *b, int64_t p0, int64_t depth, int64_t j0,
                   int64_t j1, float *to) {
    if (!g->trans_b) {
        for (int64_t p = 0; p < depth; p++)
            for (int64_t j = j0; j < j1; j += WIDE) {
                const int64_t n = j1 - j < WIDE ? j1 - j : WIDE;
                const float *from = b + position(g, p0 + p, g->ldb, g->k_gap_b) + j;
                float *row = to + (j - j0) * DEPTH + p * WIDE;
                if (n == WIDE)
                    memcpy(row, from, sizeof(float) * WIDE);
                else
                    for (int64_t q = 0; q < WIDE; q++) row[q] = q < n ? from[q] : 0;
            }
        return;
    }
    for (int64_t j = j0; j < j1; j += WIDE, to += WIDE * DEPTH) {
        const int64_t n = j1 - j < WIDE ? j1 - j : WIDE;
        const float *from = b + j * g->ldb + p0;
        for (int64_t q = 0; q < depth; q += 16) {
            const int64_t some = depth - q < 16 ? depth - q : 16;
            int64_t c = 0;
            for (; c + 4 <= n; c += 4)
                turn_four(from + c * g->ldb + q, g->ldb, some, to + q * WIDE + c, WIDE);
            for (; c < WIDE; c++)
                for (int64_t p = 0; p < some; p++)
                    to[(q + p) * WIDE + c] = c < n ? from[c * g->ldb + q + p] : 0;
        }
    }
}

// Rows of a transposed A lie a page apart: bring those of each PANEL_ROWS together.
static void pack_a(const weft_gemm *g, const float *a, int64_t p0, int64_t depth, int64_t i0,
                   int64_t m, float *to) {
    for (int64_t p = 0; p < depth; p++) {
        const float *from = a + position(g, p0 + p, g->lda, g->k_gap_a) + i0;
        float *row = to + p * PANEL_ROWS;
        int64_t i = 0;
        for (; i + PANEL_ROWS <= m; i += PANEL_ROWS)
            memcpy(row + i * DEPTH, from + i, sizeof(float) * PANEL_ROWS);
        for (int64_t r = i; r < m; r++) row[i * DEPTH + r - i] = from[r];
    }
}

// Adds (or sets) a panel's columns of C whose number is no whole vectors.
static void edge(int64_t m, int64_t n, int64_t depth, const float *a, int64_t a_row, int64_t a_col,
                 const float *panel, float *c, int64_t ldc, float alpha, bool add, float *spare) {
    NAME(panel)(m, n, depth, a, a_row, a_col, panel, WIDE, spare, WIDE, alpha, false);
    for (int64_t i = 0; i < m; i++)
        for (int64_t j = 0; j < n; j++)
            c[i * ldc + j] = add ? c[i * ldc + j] + spare[i * WIDE + j] : spare[i * WIDE + j];
}

// Columns [j0, j1) of op(B), positions [p0, p0 + DEPTH), as panels at their place in `packed`.
void WEFT_PASTE(weft_cpu_, WEFT_ISA, product_pack)(const weft_gemm *g, const float *b, int64_t p0,
                                               int64_t j0, int64_t j1, float *packed);
void WEFT_PASTE(weft_cpu_, WEFT_ISA, product_pack)(const weft_gemm *g, const float *b, int64_t p0,
                                               int64_t j0, int64_t j1, float *packed) {
    const int64_t depth = g->k - p0 < DEPTH ? g->k - p0 : DEPTH;
    pack_b(g, b, p0, depth, j0, j1, packed + p0 * weft_product_width(g->n) + j0 * DEPTH);
}

// C[i0 .. i1, j0 .. j1) of one product, set or added to; at most WEFT_TILE_N columns. packed: all of
// op(B) by product_pack, or NULL.
void WEFT_PASTE(weft_cpu_, WEFT_ISA, product)(const weft_gemm *g, const float *a, const float *b,
                                          const float *packed, float *c, int64_t i0, int64_t i1,
                                          int64_t j0, int64_t j1, bool add, float *scratch);
void WEFT_PASTE(weft_cpu_, WEFT_ISA, product)(const weft_gemm *g, const float *a, const float *b,
                                          const float *packed, float *c, int64_t i0, int64_t i1,
                                          int64_t j0, int64_t j1, bool add, float *scratch) {
    const float alpha = (float)g->alpha;
    float *mine = scratch, *rows_of_a = mine + DEPTH * WEFT_TILE_N,
          *spare = rows_of_a + DEPTH * HIGH;
    for (int64_t p0 = 0; p0 < g->k && !weft_stopped(); p0 += DEPTH, add = true) {
        const int64_t depth = g->k - p0 < DEPTH ? g->k - p0 : DEPTH;
        const float *panels =
            packed ? packed + p0 * weft_product_width(g->n) + j0 * DEPTH : mine;
        if (!packed) pack_b(g, b, p0, depth, j0, j1, mine);
        for (int64_t i = i0; i < i1; i += HIGH) {
            const int64_t m = i1 - i < HIGH ? i1 - i : HIGH, step = g->trans_a ? PANEL_ROWS : m;
            const int64_t a_row = g->trans_a ? 1 : g->lda, a_col = g->trans_a ? PANEL_ROWS : 1;
            const float *left = g->trans_a ? rows_of_a : a + i * g->lda + p0;
            if (g->trans_a) pack_a(g, a, p0, depth, i, m, rows_of_a);
            for (int64_t j = j0; j < j1; j += WIDE) {
                const int64_t n = j1 - j < WIDE ? j1 - j : WIDE, whole = n / LANES * LANES;
                const float *panel = panels + (j - j0) * DEPTH;
                for (int64_t r = 0; r < m; r += step) {
                    const int64_t rows = m - r < step ? m - r : step;
                    const float *from = left + r * (g->trans_a ? DEPTH : g->lda);
                    float *to = c + (i + r) * g->ldc + j;
                    if (whole)
                        NAME(panel)(rows, whole, depth, from, a_row, a_col, panel, WIDE, to,
                                    g->ldc, alpha, add);
                    if (whole < n)
                        edge(rows, n - whole, depth, from, a_row, a_col, panel + whole, to + whole,
                             g->ldc, alpha, add, spare);
                }
            }
        }
    }
}
