/* SPDX-License-Identifier: GPL-2.0 */
/*
 * QEMU's monitor, at the virtio port "qmp".
 */
#ifndef QMP_H
#define QMP_H

#include "diskseq.h"

const char *qmp_missing(void);
void qmp_open(void);
bool qmp(const char *command, const char *arguments, ...) __printf(2, 3);
bool qmp_insert(const char *id, char medium);

#endif /* QMP_H */
