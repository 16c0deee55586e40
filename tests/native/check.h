/* What the drivers hold true, in sanitized runs too: abort() leaves the stack in their report. */
#ifndef PYVMM_TESTS_CHECK_H
#define PYVMM_TESTS_CHECK_H

#include <stdio.h>
#include <stdlib.h>

#define CHECK(condition)                                                                                              \
    do {                                                                                                              \
        if (!(condition)) {                                                                                           \
            fprintf(stderr, "%s, line %d: %s\n", __FILE__, __LINE__, #condition);                                    \
            abort();                                                                                                  \
        }                                                                                                             \
    } while (0)

#endif
