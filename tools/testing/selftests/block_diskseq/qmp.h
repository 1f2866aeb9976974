/* SPDX-License-Identifier: GPL-2.0 */
/*
 * QEMU's monitor (QMP) at the virtio port named "qmp", by which the media of drives
 * are changed. The drives have ids that the callers know; the environment has
 * DISKSEQ_MEDIA, the directory with their media: ID-a, ID-b and so on, as QEMU knows it.
 */
#ifndef QMP_H
#define QMP_H

#include "diskseq.h"

/* What is missing for it, or NULL. */
const char *qmp_missing(void);

void qmp_open(void);
void qmp_close(void);

/* Also if the drive is open, and may have locked its tray. */
bool qmp_insert(const char *id, char medium);
bool qmp_eject(const char *id);

/* A USB stick with the id stick; pulled, it may not be gone yet. */
bool qmp_plug_stick(char medium);
bool qmp_pull_stick(void);

#endif /* QMP_H */
