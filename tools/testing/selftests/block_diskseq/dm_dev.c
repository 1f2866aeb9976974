// SPDX-License-Identifier: GPL-2.0
/*
 * Device mapper's ioctls.
 */
#include <stdio.h>

#include "dm_dev.h"

/* Returns 0 or what it failed with. @text is a table's parameters or a name. */
int dm_call(int control, const char *name, unsigned long command, unsigned int flags,
	    const char *type, uint64_t sectors, const char *text, dev_t *dev)
{
	struct {
		struct dm_ioctl head;
		struct dm_target_spec target;
		char text[128];
	} call = {
		.head = {
			.version = { DM_VERSION_MAJOR, 0, 0 },
			.data_size = sizeof(call),
			.data_start = offsetof(typeof(call), target),
			.flags = flags,
		},
	};

	snprintf(call.head.name, sizeof(call.head.name), "%s", name);
	if (type) {
		call.head.target_count = 1;
		call.target.length = sectors;
		snprintf(call.target.target_type, sizeof(call.target.target_type),
			 "%s", type);
		snprintf(call.text, sizeof(call.text), "%s", text);
	} else if (text) {
		call.head.data_start = offsetof(typeof(call), text);
		snprintf(call.text, sizeof(call.text), "%s", text);
	}
	if (ioctl(control, command, &call))
		return errno;
	if (dev)
		*dev = call.head.dev;
	return 0;
}
