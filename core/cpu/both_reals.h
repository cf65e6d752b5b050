// both_reals.h: includes the file named by BODY twice, for float32 and for float64. In it REAL is
// the type, FN(name) a name of this type's own, MATH(name) the function of math.h.
#define REAL float
#define FN(name) name##_f32
#define MATH(name) weft_##name##f
#include BODY
#undef REAL
#undef FN
#undef MATH
#define REAL double
#define FN(name) name##_f64
#define MATH(name) weft_##name##d
#include BODY
#undef REAL
#undef FN
#undef MATH
#undef BODY
