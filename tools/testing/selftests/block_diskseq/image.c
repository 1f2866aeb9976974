// SPDX-License-Identifier: GPL-2.0
/*
 * Media: images in memory whose every sector says which image and sector it is,
 * with GPT and MS-DOS partition tables where a test wants them.
 */
#include <endian.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "diskseq.h"

#define GPT_ENTRIES		128
#define GPT_ENTRY_BYTES		128
#define GPT_TABLE_SECTORS	(GPT_ENTRIES * GPT_ENTRY_BYTES / SECTOR)
#define GPT_FIRST_USABLE	(2 + GPT_TABLE_SECTORS)

/* Partition n begins here and is PART_STRIDE sectors long, or a bit less. */
#define PART_FIRST		64
#define PART_STRIDE		2

struct gpt_header {
	char signature[8];
	uint32_t revision;
	uint32_t header_size;
	uint32_t header_crc32;
	uint32_t reserved;
	uint64_t my_lba;
	uint64_t alternate_lba;
	uint64_t first_usable_lba;
	uint64_t last_usable_lba;
	uint8_t disk_guid[16];
	uint64_t entries_lba;
	uint32_t entries;
	uint32_t entry_size;
	uint32_t entries_crc32;
} __packed;

struct gpt_entry {
	uint8_t type_guid[16];
	uint8_t part_guid[16];
	uint64_t first_lba;
	uint64_t last_lba;
	uint64_t attributes;
	uint16_t name[36];
} __packed;

struct msdos_entry {
	uint8_t boot;
	uint8_t chs_first[3];
	uint8_t type;
	uint8_t chs_last[3];
	uint32_t start;
	uint32_t sectors;
} __packed;

static uint32_t crc32(const void *data, size_t len)
{
	static uint32_t table[256];
	const uint8_t *p = data;
	uint32_t crc = ~0U;
	int i, bit;

	if (!table[1]) {
		for (i = 0; i < 256; i++) {
			table[i] = i;
			for (bit = 0; bit < 8; bit++)
				table[i] = (table[i] >> 1) ^
					   (table[i] & 1 ? 0xedb88320 : 0);
		}
	}
	while (len--)
		crc = table[(crc ^ *p++) & 0xff] ^ (crc >> 8);
	return ~crc;
}

static void put(int fd, const void *buf, size_t len, uint64_t sector)
{
	if (pwrite(fd, buf, len, sector * SECTOR) != (ssize_t)len)
		die("image: %s", strerror(errno));
}

/* The content of a sector of image @id, as a medium XORed with @key shows it. */
void image_sector(char id, uint64_t sector, const char *key, char *buf)
{
	size_t i;

	memset(buf, id, SECTOR);
	snprintf(buf, 40, "image %c sector %llu", id, (unsigned long long)sector);
	for (i = 0; key && i < SECTOR; i++)
		buf[i] ^= key[i % strlen(key)];
}

/* Is @image_sector of image @id what can be read as @sector of the disk @fd? */
bool sector_is(int fd, uint64_t sector, char id, uint64_t image_sector_nr,
	       const char *key)
{
	char want[SECTOR], have[SECTOR];

	image_sector(id, image_sector_nr, key, want);
	return pread(fd, have, SECTOR, sector * SECTOR) == SECTOR &&
	       !memcmp(want, have, SECTOR);
}

/* A new image, @images times IMAGE_SECTORS long. */
int image_create(char id, int images)
{
	size_t sectors = (size_t)images * IMAGE_SECTORS, i;
	char *content = malloc(sectors * SECTOR);
	int fd = memfd_create("image", MFD_CLOEXEC);

	if (fd < 0 || !content)
		die("image: %s", strerror(errno));
	for (i = 0; i < sectors; i++)
		image_sector(id, i, NULL, content + i * SECTOR);
	put(fd, content, sectors * SECTOR, 0);
	free(content);
	return fd;
}

/* A new image without any content, which takes no time to make. */
int image_create_empty(void)
{
	int fd = memfd_create("image", MFD_CLOEXEC);

	if (fd < 0 || ftruncate(fd, IMAGE_BYTES))
		die("image: %s", strerror(errno));
	return fd;
}

/* Where partition @partno is, from the table's first sector on. */
void image_part(enum table table, int partno, uint64_t *start, uint64_t *sectors)
{
	*start = PART_FIRST + (partno - 1) * PART_STRIDE;
	*sectors = PART_STRIDE;
	/* the sector before a logical partition describes it */
	if (table == TABLE_MSDOS && partno > 4) {
		*start += 1;
		*sectors -= 1;
	}
}

static void gpt(int fd, uint64_t first, int count, const char *prefix)
{
	struct gpt_entry table[GPT_ENTRIES];
	char sector[SECTOR], name[36];
	struct gpt_header *header = (struct gpt_header *)sector;
	uint64_t last = IMAGE_SECTORS - 1, start, sectors;
	int i, j, backup;
	struct msdos_entry protective = {
		.type = 0xee,
		.start = htole32(1),
		.sectors = htole32(last),
	};

	memset(sector, 0, SECTOR);
	memcpy(sector + 446, &protective, sizeof(protective));
	memcpy(sector + 510, "\x55\xaa", 2);
	put(fd, sector, SECTOR, first);

	memset(table, 0, sizeof(table));
	for (i = 0; i < count; i++) {
		image_part(TABLE_GPT, i + 1, &start, &sectors);
		memset(table[i].type_guid, 0xd5, 16);
		memset(table[i].part_guid, i + 1, 16);
		table[i].first_lba = htole64(start);
		table[i].last_lba = htole64(start + sectors - 1);
		snprintf(name, sizeof(name), "%s%d", prefix, i + 1);
		for (j = 0; name[j]; j++)
			table[i].name[j] = htole16(name[j]);
	}

	for (backup = 0; backup < 2; backup++) {
		memset(sector, 0, SECTOR);
		memcpy(header->signature, "EFI PART", 8);
		header->revision = htole32(0x10000);
		header->header_size = htole32(sizeof(*header));
		header->my_lba = htole64(backup ? last : 1);
		header->alternate_lba = htole64(backup ? 1 : last);
		header->first_usable_lba = htole64(GPT_FIRST_USABLE);
		header->last_usable_lba = htole64(last - 1 - GPT_TABLE_SECTORS);
		memset(header->disk_guid, 0xd1, 16);
		header->entries_lba = htole64(backup ?
					      last - GPT_TABLE_SECTORS : 2);
		header->entries = htole32(GPT_ENTRIES);
		header->entry_size = htole32(GPT_ENTRY_BYTES);
		header->entries_crc32 = htole32(crc32(table, sizeof(table)));
		header->header_crc32 = htole32(crc32(header, sizeof(*header)));
		put(fd, sector, SECTOR, first + le64toh(header->my_lba));
		put(fd, table, sizeof(table),
		    first + le64toh(header->entries_lba));
	}
}

static void msdos_entry(char *sector, int slot, int type, uint64_t start,
			uint64_t sectors)
{
	struct msdos_entry entry = {
		.type = type,
		.start = htole32(start),
		.sectors = htole32(sectors),
	};

	memcpy(sector + 446 + slot * sizeof(entry), &entry, sizeof(entry));
	memcpy(sector + 510, "\x55\xaa", 2);
}

static void msdos(int fd, uint64_t first, int count)
{
	uint64_t extended, start, sectors;
	char sector[SECTOR];
	int i;

	memset(sector, 0, SECTOR);
	memcpy(sector + 510, "\x55\xaa", 2);
	for (i = 0; i < count && i < 4; i++) {
		image_part(TABLE_MSDOS, i + 1, &start, &sectors);
		msdos_entry(sector, i, 0x83, start, sectors);
	}
	if (count <= 4) {
		put(fd, sector, SECTOR, first);
		return;
	}

	/* the fourth one holds the others, each after a sector of its own */
	image_part(TABLE_MSDOS, 5, &extended, &sectors);
	extended--;
	msdos_entry(sector, 3, 0x05, extended, (count - 4) * PART_STRIDE);
	put(fd, sector, SECTOR, first);
	for (i = 5; i <= count; i++) {
		image_part(TABLE_MSDOS, i, &start, &sectors);
		memset(sector, 0, SECTOR);
		msdos_entry(sector, 0, 0x83, 1, sectors);
		if (i < count)
			msdos_entry(sector, 1, 0x05,
				    start - 1 + PART_STRIDE - extended,
				    PART_STRIDE);
		put(fd, sector, SECTOR, first + start - 1);
	}
}

/*
 * Write a table with @count partitions for the IMAGE_SECTORS that begin at
 * @first. Those of a GPT are named @prefix and their number.
 */
void image_table(int fd, uint64_t first, enum table table, int count,
		 const char *prefix)
{
	if (table == TABLE_GPT)
		gpt(fd, first, count, prefix);
	else if (table == TABLE_MSDOS)
		msdos(fd, first, count);
}
