/* A step of the generator on a CPU: one more element of each of R sequences through all blocks, and the heads.

   Every row is computed alike, whatever the others are: sums over k go up one by one, sums over a row go by the same 16
   lanes and the same tree, so that a row's bits depend neither on R nor on threads, nor, where there are fused
   multiply-adds, on how wide the processor's registers are.

   Letters: R rows, W width, H heads, D = W / H, L elements that a row has room for, K inputs and N outputs of a product,
   F hidden size of the MLP. A padded size is rounded up to whole panels. */

#include <stdint.h>

#define LANES 16
typedef float vec __attribute__((vector_size(64), aligned(4), may_alias));
typedef int32_t ints __attribute__((vector_size(64)));

/* Columns of a weight that are stored together, row by row: as many as leave room for ROWS rows of sums in registers. */
#ifdef __AVX512F__
#define VECS 4
#else
#define VECS 1
#endif
#define ROWS 6
#define PANEL (VECS * LANES)
#define KEYS 16      /* of a head, stored together, dimension by dimension */
#define MAX_SIZE 256 /* D */

const int64_t panel_width = PANEL;

struct layer {
    const float *qkv, *query_norm, *key_norm, *out, *gate_up, *down; /* products as panels; norms before them are in them */
    float *keys, *values;                                            /* (R, H, L / KEYS, D, KEYS), (R, H, L, padded D) */
};

struct model {
    int64_t width, num_heads, hidden, depth, length; /* hidden: F, a multiple of LANES */
    float eps;
    const struct layer *layers;
    const float *norm;   /* (W,) */
    const float *rotary; /* (spots, D / 2, 2) */
};

struct embedding {
    int64_t width, num_globals;
    const float *global_codes, *global_slots, *patch_codes, *patch_places; /* rows of W */
};

struct code_head {
    int64_t width, hidden, vocab;
    float eps;
    const float *places, *gate_up, *down, *out; /* (N, W), and panels */
};

static int64_t padded(int64_t size) { return (size + PANEL - 1) / PANEL * PANEL; }
static int64_t lanes(int64_t size) { return (size + LANES - 1) / LANES * LANES; }

static inline vec load(const float *from) { return *(const vec *)from; }
static inline void store(float *to, vec value) { *(vec *)to = value; }

static inline vec larger(vec one, vec other) {
    const ints is_other = one < other;
    return (vec)(((ints)other & is_other) | ((ints)one & ~is_other));
}

static float sum(vec value) {
    float part[LANES];
    store(part, value);
    for (int half = LANES / 2; half; half /= 2)
        for (int i = 0; i < half; i++) part[i] += part[i + half];
    return part[0];
}

static float maximum(vec value) {
    float part[LANES], most;
    store(part, value);
    most = part[0];
    for (int i = 1; i < LANES; i++) most = part[i] > most ? part[i] : most;
    return most;
}

/* e^x within 2 units in the last place: 2^n · e^r with |r| <= ln(2) / 2, the latter by its series. */
static inline vec exponential(vec x) {
    x = -larger(-larger(x, (vec){} - 87.0f), (vec){} - 88.0f);
    const vec shift = (vec){} + 12582912.0f; /* 1.5 · 2^23: adding it rounds to integers */
    vec n = x * 1.44269504f + shift;
    const ints bits = (ints)n - (ints)shift;
    n -= shift;
    vec r = x - n * 0.693145752f;
    r -= n * 1.42860677e-6f;
    vec y = (vec){} + 1.0f / 5040;
    y = y * r + 1.0f / 720;
    y = y * r + 1.0f / 120;
    y = y * r + 1.0f / 24;
    y = y * r + 1.0f / 6;
    y = y * r + 0.5f;
    y = y * r + 1.0f;
    y = y * r + 1.0f;
    return (vec)((ints)y + (bits << 23));
}

static inline __attribute__((always_inline)) void tile(
    const int rows, const float *x, int64_t x_stride, const float *weight, int64_t inputs, float *out, int64_t stride) {
    vec sums[ROWS][VECS];
#pragma GCC unroll 8
    for (int r = 0; r < rows; r++)
#pragma GCC unroll 8
        for (int v = 0; v < VECS; v++) sums[r][v] = (vec){};
    for (int64_t k = 0; k < inputs; k++, weight += PANEL) {
        vec columns[VECS];
#pragma GCC unroll 8
        for (int v = 0; v < VECS; v++) columns[v] = load(weight + v * LANES);
#pragma GCC unroll 8
        for (int r = 0; r < rows; r++)
#pragma GCC unroll 8
            for (int v = 0; v < VECS; v++) sums[r][v] += columns[v] * x[r * x_stride + k];
    }
#pragma GCC unroll 8
    for (int r = 0; r < rows; r++)
#pragma GCC unroll 8
        for (int v = 0; v < VECS; v++) store(out + r * stride + v * LANES, sums[r][v]);
}

/* x (R, K) times panels (N, K) to (R, padded N). */
static void product(const float *x, int64_t x_stride, int64_t rows, int64_t inputs, const float *panels, int64_t outputs,
                    float *out) {
    const int64_t stride = padded(outputs);
#pragma omp for
    for (int64_t at = 0; at < stride; at += PANEL) {
        const float *weight = panels + at * inputs;
        for (int64_t r = 0; r < rows; r += ROWS) {
            const float *from = x + r * x_stride;
            float *to = out + r * stride + at;
            switch (rows - r < ROWS ? rows - r : ROWS) {
                case 1: tile(1, from, x_stride, weight, inputs, to, stride); break;
                case 2: tile(2, from, x_stride, weight, inputs, to, stride); break;
                case 3: tile(3, from, x_stride, weight, inputs, to, stride); break;
                case 4: tile(4, from, x_stride, weight, inputs, to, stride); break;
                case 5: tile(5, from, x_stride, weight, inputs, to, stride); break;
                default: tile(6, from, x_stride, weight, inputs, to, stride);
            }
        }
    }
}

/* x (size,), zeros up to whole lanes, over the root of its mean square. */
static void normalise(const float *x, int64_t size, float eps, float *out) {
    vec squares = {};
    for (int64_t i = 0; i < size; i += LANES) squares += load(x + i) * load(x + i);
    const float scale = 1 / __builtin_sqrtf(sum(squares) / size + eps);
    for (int64_t i = 0; i < size; i += LANES) store(out + i, load(x + i) * scale);
}

static void normalise_rows(const float *x, int64_t rows, int64_t width, float eps, float *out) {
    const int64_t stride = padded(width);
#pragma omp for
    for (int64_t r = 0; r < rows; r++) normalise(x + r * stride, width, eps, out + r * stride);
}

static void add(float *x, const float *more, int64_t size) {
#pragma omp for
    for (int64_t i = 0; i < size; i += LANES) store(x + i, load(x + i) + load(more + i));
}

/* x (size,): norm, its weight, rotation. */
static void turn(const float *x, int64_t size, float eps, const float *weight, const float *rotary, float *out) {
    float whole[MAX_SIZE] = {0};
    for (int64_t i = 0; i < size; i++) whole[i] = x[i];
    normalise(whole, size, eps, whole);
    for (int64_t i = 0; i < size; i += 2) {
        const float first = whole[i] * weight[i], second = whole[i + 1] * weight[i + 1];
        const float cosine = rotary[i], sine = rotary[i + 1];
        out[i] = first * cosine - second * sine;
        out[i + 1] = second * cosine + first * sine;
    }
}

/* One row's head over its elements up to `order`, to (D,). */
static void attend(const float *query, const float *keys, const float *values, int64_t order, int64_t size, float *scores,
                   float *out) {
    vec most = (vec){} - __builtin_inff(), total = {};
    for (int64_t at = 0; at <= order; at += KEYS, keys += size * KEYS) {
        vec part[4] = {{}, {}, {}, {}};
        for (int64_t d = 0; d < size; d += 4) /* D is a multiple of 8 */
            for (int i = 0; i < 4; i++) part[i] += load(keys + (d + i) * KEYS) * query[d + i];
        vec score = (part[0] + part[1]) + (part[2] + part[3]);
        for (int i = 0; i < LANES; i++)
            if (at + i > order) score[i] = -__builtin_inff();
        store(scores + at, score);
        most = larger(most, score);
    }
    const float top = maximum(most);
    for (int64_t at = 0; at <= order; at += KEYS) {
        const vec score = load(scores + at);
        const ints is_seen = score > (vec){} - 3e38f;
        const vec weight = (vec)((ints)exponential(score - top) & is_seen);
        store(scores + at, weight);
        total += weight;
    }
    const float scale = 1 / sum(total);
    const int64_t stride = lanes(size);
    for (int64_t d = 0; d < size; d += LANES) {
        vec part[4] = {{}, {}, {}, {}};
        int64_t l = 0;
        for (; l + 4 <= order + 1; l += 4)
            for (int i = 0; i < 4; i++) part[i] += load(values + (l + i) * stride + d) * scores[l + i];
        for (int i = 0; l < order + 1; l++, i++) part[i] += load(values + l * stride + d) * scores[l];
        float whole[LANES];
        store(whole, ((part[0] + part[1]) + (part[2] + part[3])) * scale);
        for (int i = 0; i < LANES && d + i < size; i++) out[d + i] = whole[i];
    }
}

/* Queries, keys and values (R, 3, H, D), rows padded, to what heads see, (R, H, D), rows padded. */
static void attend_rows(const struct model *model, const struct layer *layer, int64_t rows, const int64_t *orders,
                        const int64_t *spots, const float *qkv, float *scores, float *out) {
    const int64_t width = model->width, size = width / model->num_heads, length = model->length;
#pragma omp for
    for (int64_t at = 0; at < rows * model->num_heads; at++) {
        const int64_t row = at / model->num_heads, head = at % model->num_heads, order = orders[row];
        const float *own = qkv + row * padded(3 * width) + head * size, *rotary = model->rotary + spots[row] * size;
        float *keys = layer->keys + at * length * size, *values = layer->values + at * length * lanes(size);
        float query[MAX_SIZE], key[MAX_SIZE];
        turn(own, size, model->eps, layer->query_norm, rotary, query);
        turn(own + width, size, model->eps, layer->key_norm, rotary, key);
        for (int64_t d = 0; d < size; d++) keys[(order / KEYS * size + d) * KEYS + order % KEYS] = key[d];
        for (int64_t d = 0; d < size; d++) values[order * lanes(size) + d] = own[2 * width + d];
        attend(query, keys, values, order, size, scores + at * length, out + row * padded(width) + head * size);
    }
}

/* Of rows (2·F): silu(gate) · up, in place of the first F. */
static void gate(float *x, int64_t rows, int64_t hidden) {
#pragma omp for
    for (int64_t r = 0; r < rows; r++) {
        float *row = x + r * padded(2 * hidden);
        for (int64_t i = 0; i < hidden; i += LANES) {
            const vec value = load(row + i);
            store(row + i, value / (1 + exponential(-value)) * load(row + hidden + i));
        }
    }
}

/* x (R, padded W) += MLP(norm(x)). `spare`: (R, padded W), `inner`: (R, padded 2·F). */
static void mlp(float *x, int64_t rows, int64_t width, int64_t hidden, float eps, const float *gate_up, const float *down,
                float *spare, float *inner) {
    const int64_t stride = padded(width);
    normalise_rows(x, rows, width, eps, spare);
    product(spare, stride, rows, width, gate_up, 2 * hidden, inner);
    gate(inner, rows, hidden);
    product(inner, padded(2 * hidden), rows, hidden, down, width, spare);
    add(x, spare, rows * stride);
}

/* Floats that the functions below need to work with. */
int64_t scratch_size(int64_t rows, int64_t width, int64_t num_heads, int64_t hidden, int64_t length) {
    return rows * (3 * padded(width) + padded(3 * width) + padded(2 * hidden) + num_heads * length);
}

/* Of R slots the next elements, (R, W): the condition of its request, a global, or a patch. */
void embed(const struct embedding *model, int64_t rows, const int64_t *orders, const int64_t *codes, const int64_t *places,
           const float *conditions, const int64_t *requests, float *out) {
    const int64_t width = model->width;
    for (int64_t r = 0; r < rows; r++, out += width) {
        if (!orders[r]) {
            for (int64_t i = 0; i < width; i++) out[i] = conditions[requests[r] * width + i];
            continue;
        }
        const int is_global = orders[r] <= model->num_globals;
        const float *code = (is_global ? model->global_codes : model->patch_codes) + codes[r] * width;
        const float *place = (is_global ? model->global_slots : model->patch_places) + places[r] * width;
        for (int64_t i = 0; i < width; i++) out[i] = code[i] + place[i];
    }
}

/* Elements (R, W), each with its order in its sequence and its spot, to hidden states (R, W), normalised; keys and values
   are kept. */
void run_blocks(const struct model *model, int64_t rows, const int64_t *orders, const int64_t *spots,
                const float *elements, float *out, float *scratch, int threads) {
    const int64_t width = model->width, stride = padded(width);
    float *x = scratch, *spare = x + rows * stride, *mixed = spare + rows * stride, *qkv = mixed + rows * stride;
    float *inner = qkv + rows * padded(3 * width), *scores = inner + rows * padded(2 * model->hidden);
    for (int64_t i = 0; i < 3 * rows * stride; i++) scratch[i] = 0;
    for (int64_t r = 0; r < rows; r++)
        for (int64_t i = 0; i < width; i++) x[r * stride + i] = elements[r * width + i];
#pragma omp parallel num_threads(threads) if (threads > 1)
    for (int64_t depth = 0; depth < model->depth; depth++) {
        const struct layer *layer = model->layers + depth;
        normalise_rows(x, rows, width, model->eps, spare);
        product(spare, stride, rows, width, layer->qkv, 3 * width, qkv);
        attend_rows(model, layer, rows, orders, spots, qkv, scores, mixed);
        product(mixed, stride, rows, width, layer->out, width, spare);
        add(x, spare, rows * stride);
        mlp(x, rows, width, model->hidden, model->eps, layer->gate_up, layer->down, spare, inner);
    }
    normalise_rows(x, rows, width, model->eps, spare);
    for (int64_t r = 0; r < rows; r++)
        for (int64_t i = 0; i < width; i++) out[r * width + i] = spare[r * stride + i] * model->norm[i];
}

/* Hidden states (R, W) to logits (R, padded N). */
void project(const float *hidden, int64_t rows, int64_t width, const float *panels, int64_t outputs, float *out,
             int threads) {
#pragma omp parallel num_threads(threads) if (threads > 1)
    product(hidden, width, rows, width, panels, outputs, out);
}

/* Hidden states (R, W) and positions (R,) to logits of codes, (R, padded V). */
void project_codes(const struct code_head *head, int64_t rows, const float *hidden, const int64_t *positions, float *out,
                   float *scratch, int threads) {
    const int64_t width = head->width, stride = padded(width);
    float *x = scratch, *spare = x + rows * stride, *inner = spare + rows * stride;
    for (int64_t i = 0; i < 2 * rows * stride; i++) scratch[i] = 0;
    for (int64_t r = 0; r < rows; r++) {
        const float *place = head->places + positions[r] * width, *from = hidden + r * width;
        for (int64_t i = 0; i < width; i++) x[r * stride + i] = from[i] + place[i];
    }
#pragma omp parallel num_threads(threads) if (threads > 1)
    {
        mlp(x, rows, width, head->hidden, head->eps, head->gate_up, head->down, spare, inner);
        normalise_rows(x, rows, width, head->eps, spare);
        product(spare, stride, rows, width, head->out, head->vocab, out);
    }
}
