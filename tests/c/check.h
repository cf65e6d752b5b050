// check.h: the few lines that the C tests need. Counts go to the last line of standard output.
#ifndef WEFT_CHECK_H
#define WEFT_CHECK_H

#include <stdio.h>
#include <string.h>

static int check_passed, check_failed;

#define CHECK(condition) \
    do { \
        if (condition) { \
            check_passed++; \
        } else { \
            check_failed++; \
            printf("%s:%d: not so: %s\n", __FILE__, __LINE__, #condition); \
        } \
    } while (0)

#define CHECK_REPORT() \
    (printf("%d passed, %d failed\n", check_passed, check_failed), check_failed != 0)

#endif
