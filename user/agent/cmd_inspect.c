// SPDX-License-Identifier: GPL-2.0-or-later
#include <json-c/json.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>

#include "agent/command.h"
#include "agent/report.h"
#include "base/log.h"
#include "engine/record.h"
#include "store/reader.h"

static uint64_t disk_bytes(const struct ferry_store_file *f)
{
	struct stat st;

	return stat(f->path, &st) ? 0 : (uint64_t)st.st_blocks * 512;
}

static uint64_t block_pages(const struct ferry_store_file *f, unsigned int block)
{
	uint64_t i, n = 0;

	for (i = 0; i < f->blocks[block].bitmap_bytes / 8; i++)
		n += (unsigned int)__builtin_popcountll(f->bits[block][i]);
	return n;
}

static uint64_t ram_bytes(const struct ferry_store_file *f)
{
	uint64_t n = 0;
	unsigned int i;

	for (i = 0; i < f->header.blocks; i++)
		n += f->blocks[i].size_bytes;
	return n;
}

static void put_u64(struct json_object *o, const char *key, uint64_t value)
{
	json_object_object_add(o, key, json_object_new_uint64(value));
}

static void put_text(struct json_object *o, const char *key, const char *value)
{
	json_object_object_add(o, key, value ? json_object_new_string(value) : NULL);
}

static struct json_object *blocks_json(const struct ferry_store_file *f)
{
	struct json_object *list = json_object_new_array();
	unsigned int i;

	for (i = 0; i < f->header.blocks; i++) {
		struct json_object *b = json_object_new_object();

		put_text(b, "name", f->blocks[i].name);
		put_u64(b, "size_bytes", f->blocks[i].size_bytes);
		put_u64(b, "page_size", f->blocks[i].page_size);
		put_u64(b, "pages", block_pages(f, i));
		json_object_array_add(list, b);
	}
	return list;
}

/* @whole: all but the pages could be read; @err: what does not hold, or empty. */
static void inspect_json(const struct ferry_store_file *f, const char *path, bool whole,
			 const struct ferry_error *err)
{
	struct json_object *o = json_object_new_object();
	char uuid[FERRY_UUID_TEXT];

	put_text(o, "event", "inspected");
	put_text(o, "file", path);
	json_object_object_add(o, "complete", json_object_new_boolean(whole));
	json_object_object_add(o, "verified", json_object_new_boolean(f->pages_verified));
	if (f->header.version) {
		ferry_uuid_format(f->header.uuid, uuid);
		put_u64(o, "version", f->header.version);
		put_u64(o, "min_version", f->header.min_version);
		put_u64(o, "features", f->header.features);
		json_object_object_add(o, "partial", json_object_new_boolean(
			f->header.features & FERRY_STORE_FEATURE_PARTIAL));
		put_text(o, "uuid", uuid);
		put_u64(o, "created_s", f->header.created_s);
		put_text(o, "kind", f->header.kind);
		put_text(o, "vmm", f->header.vmm);
	}
	if (whole) {
		json_object_object_add(o, "guest_paused", json_object_new_boolean(
			f->commit.flags & FERRY_STORE_COMMIT_PAUSED));
		put_u64(o, "ram_bytes", ram_bytes(f));
		put_u64(o, "pages", f->commit.pages);
		put_u64(o, "device_bytes", f->commit.device_bytes);
		put_u64(o, "order_entries", f->commit.order_count);
		put_u64(o, "file_bytes", f->commit.file_bytes);
		put_u64(o, "disk_bytes", disk_bytes(f));
		json_object_object_add(o, "blocks", blocks_json(f));
	}
	put_text(o, "error", err->text[0] ? err->text : NULL);
	ferry_report_print(o);
}

static void inspect_blocks(const struct ferry_store_file *f)
{
	unsigned int i;
	char size[16];

	for (i = 0; i < f->header.blocks; i++) {
		const struct ferry_store_block *b = &f->blocks[i];
		uint64_t pages = block_pages(f, i), all = b->size_bytes / FERRY_STORE_PAGE_BYTES;

		ferry_report_bytes(b->size_bytes, size);
		printf("  block %-16s %9s, %u-byte pages, %llu of %llu are there (%.0f %% sparse)\n",
		       b->name, size, b->page_size, (unsigned long long)pages,
		       (unsigned long long)all, 100.0 - 100.0 * (double)pages / (double)all);
	}
}

/* @sums: what is known of the checksums of pages. */
static void inspect_text(const struct ferry_store_file *f, const char *path, bool whole,
			 const char *sums)
{
	char when[32] = "", uuid[FERRY_UUID_TEXT], size[16], disk[16], ram[16];
	time_t made = (time_t)f->header.created_s;
	struct tm tm;

	if (!f->header.version)
		return;
	if (gmtime_r(&made, &tm))
		strftime(when, sizeof(when), "%Y-%m-%d %H:%M:%S UTC", &tm);
	ferry_uuid_format(f->header.uuid, uuid);
	printf("%s: snapshot, format version %u (readers from version %u on), %s\n", path,
	       f->header.version, f->header.min_version, whole ? "complete" : "NOT usable");
	printf("  made %s by %s, state of %s\n  uuid %s\n", when,
	       f->header.vmm[0] ? f->header.vmm : "an unnamed VMM", f->header.kind, uuid);
	if (!whole)
		return;
	ferry_report_bytes(f->commit.file_bytes, size);
	ferry_report_bytes(disk_bytes(f), disk);
	ferry_report_bytes(ram_bytes(f), ram);
	if (f->header.features & FERRY_STORE_FEATURE_PARTIAL)
		printf("  holds only some pages: for 'ferry recover', no guest can be started from it\n");
	printf("  %s of RAM; %s long, takes %s on the disk\n", ram, size, disk);
	inspect_blocks(f);
	printf("  device state %u bytes; order of first touch: %llu pages; the guest was %s\n",
	       f->commit.device_bytes, (unsigned long long)f->commit.order_count,
	       f->commit.flags & FERRY_STORE_COMMIT_PAUSED ? "paused" : "running");
	printf("  checksums of pages: %s\n", sums);
}

int ferry_command_inspect(const struct ferry_args *args)
{
	struct ferry_store_read_params params = {
		.threads = args->job.channels,
		.verify = true,
	};
	const char *path = args->operands[0];
	struct ferry_error err = { 0 };
	static struct ferry_store_file f; /* large */
	int r = ferry_store_open(&f, path, &err);
	bool whole = !r;

	if (!r && args->job.direct)
		r = ferry_store_direct(&f, &err);
	if (!r && !args->job.no_verify)
		r = ferry_store_read_all(&f, &params, &err);
	if (args->json)
		inspect_json(&f, path, whole, &err);
	else if (!args->quiet)
		inspect_text(&f, path, whole, f.pages_verified ? "all hold" :
			     r ? "could NOT all be found to hold" : "not compared");
	if (r)
		ferry_log_error("%s", err.text);
	if (whole)
		ferry_store_close(&f);
	return r ? FERRY_EXIT_FAILED : FERRY_EXIT_DONE;
}
